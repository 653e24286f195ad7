"""How far a teacher's endpoint is: which key may go to it, whether its way can be read, whether it stands inside.

A recipe comes from anywhere, and names both an address and a variable. What a key is for, and which hosts are the
house's own, is therefore decided outside it: by the table below, by the address itself, or by the user's environment.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import Iterable

import httpx2 as httpx

from workbench.errors import RequestError
from workbench.privacy.secrets import ALLOWED_KEYS, is_allowed
from workbench.recipe import Teacher
from workbench.urls import is_loopback

ADDRESSES = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
INSIDE_HOSTS = "WORKBENCH_INSIDE_HOSTS"  # the user's word on which hosts are the house's own
# Whose key it is: the hosts it may go to; a name with a dot in front stands for all hosts below it.
KEY_HOSTS: dict[str, tuple[str, ...]] = {
    "OPENAI_API_KEY": ("api.openai.com", ".api.openai.com"),
    "ANTHROPIC_API_KEY": ("api.anthropic.com",),
    "AZURE_OPENAI_API_KEY": (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com"),
    "DEEPSEEK_API_KEY": ("api.deepseek.com",),
    "FIREWORKS_API_KEY": ("api.fireworks.ai",),
    "GEMINI_API_KEY": ("generativelanguage.googleapis.com",),
    "GOOGLE_API_KEY": ("generativelanguage.googleapis.com",),
    "MISTRAL_API_KEY": ("api.mistral.ai", "codestral.mistral.ai"),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
    "TOGETHER_API_KEY": ("api.together.xyz", "api.together.ai"),
    "XAI_API_KEY": ("api.x.ai", ".api.x.ai"),
    "GROQ_API_KEY": ("api.groq.com",),
    "CEREBRAS_API_KEY": ("api.cerebras.ai",),
    "COHERE_API_KEY": ("api.cohere.ai", "api.cohere.com"),
    "PERPLEXITY_API_KEY": ("api.perplexity.ai",),
    "NVIDIA_API_KEY": ("integrate.api.nvidia.com",),
    "DASHSCOPE_API_KEY": ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"),
    "MOONSHOT_API_KEY": ("api.moonshot.ai", "api.moonshot.cn"),
}
# Keys of endpoints of one's own: made for this, and good for nothing else.
OWN_KEY = re.compile(
    r"WORKBENCH_(?:\w+_)?KEY|(?:\w+_)?(?:TEACHER|JUDGE|GATEWAY)_(?:API_)?KEY|"
    r"(?:LITELLM|VLLM|SGLANG|OLLAMA|LLAMA|LLAMACPP|LOCAL)_(?:API_)?KEY"
)
INSIDE = tuple(
    ipaddress.ip_network(net)
    for net in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",  # RFC 1122, 1918, 3927
        "::1/128", "fc00::/7", "fe80::/10",  # RFC 4291, 4193
    )
)  # fmt: skip


def base_url_of(teacher: Teacher) -> str:
    """Where the teacher answers; '' when nobody has said. A local file is served on loopback."""
    if teacher.api == "local_gguf":
        return "http://127.0.0.1"
    return teacher.base_url or ADDRESSES.get(teacher.api, "")


def require_way(teacher: Teacher, privacy: str, *, look_up: bool = True) -> list[str]:
    """What a user should hear of the way to the teacher; RequestError where its key or such rows may not take it.

    Without `look_up` no name is looked up: `plan` asks nothing of the network.
    """
    base = base_url_of(teacher)
    if not base:
        return []
    if teacher.key_variable and os.environ.get(teacher.key_variable):
        refuse_stray_key(teacher.key_variable, base)
    lines = refuse_readable(teacher, base, privacy)
    if teacher.inside:
        refuse_outside(base, look_up=look_up)
    return lines


def refuse_stray_key(name: str, base_url: str) -> None:
    """RequestError unless the variable's key belongs to the endpoint, or the user has allowed it outside the recipe.

    On loopback any teacher's key may be used, for a gateway on this machine; what is no teacher's key may not.
    """
    host = host_name(base_url)
    if is_allowed(name, host):
        return
    if name in KEY_HOSTS:
        if is_loopback(base_url) or matches(host, KEY_HOSTS[name]):
            return
        what = f"{name} belongs to {', '.join(h.lstrip('.') for h in KEY_HOSTS[name])}, and would be sent to {host}"
    elif OWN_KEY.fullmatch(name):
        return
    else:
        what = f"{name} is no key of a teacher that is known here, and would be sent to {host}"
    raise RequestError(
        what,
        where="teacher.key_variable",
        remedy=f"keep an endpoint's key in WORKBENCH_…_KEY; if this one is meant: export {ALLOWED_KEYS}={name}@{host}",
    )


def refuse_readable(teacher: Teacher, base_url: str, privacy: str) -> list[str]:
    """A line where the recipe allows plain http; RequestError where a key or rows that are not public would take it."""
    if httpx.URL(base_url).scheme != "http" or is_loopback(base_url):
        return []
    goes = ["the key"] * bool(teacher.key_variable) + [f"{privacy} rows"] * (privacy != "public")
    if not goes:
        return []
    if teacher.plain_http:
        return [f"{' and '.join(goes)} go over plain http to {host_name(base_url)}, as teacher.plain_http allows"]
    raise RequestError(
        f"{' and '.join(goes)} would go over plain http to {host_name(base_url)}: whoever is on the way can read them",
        where="teacher.base_url",
        remedy="https://…, or teacher.plain_http=true where nobody else is on the way",
    )


def refuse_outside(base_url: str, *, look_up: bool = True) -> None:
    """RequestError when an endpoint that is called inside has an address outside of private networks.

    Believed are loopback, RFC 1918, link-local and unique local addresses, names that have no other, and hosts that
    the user's environment names.
    """
    host = host_name(base_url)
    if is_loopback(base_url) or is_named_inside(host):
        return
    literal = address_of(host)
    if literal is None and not look_up:
        return
    try:
        addresses = [host] if literal is not None else looked_up(socket.getaddrinfo(host, None))
    except OSError:
        raise RequestError(
            f"nobody can tell whether {host} stands within your walls: it cannot be looked up",
            where="teacher.inside",
            remedy="check teacher.base_url",
        ) from None
    outside = [address for address in addresses if not is_private(address)]
    if outside:
        raise RequestError(
            f"{host} does not stand within your walls: {outside[0]} is a public address",
            where="teacher.inside",
            remedy=f"teacher.inside=false; if it is the house's own: export {INSIDE_HOSTS}={host}",
        )


async def checked_address(host: str, port: int | None) -> str:
    """The private address that a name has this very moment; RequestError when any of its addresses is public."""
    addresses = looked_up(await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))
    outside = [address for address in addresses if not is_private(address)]
    if outside or not addresses:
        raise RequestError(
            f"{host} has become {outside[0] if outside else 'nothing'}, which is not within your walls",
            where="teacher.inside",
            remedy="nothing was sent there; find out who changed the name's address",
        )
    return addresses[0]


def looked_up(answers: Iterable[tuple[object, object, object, object, tuple[object, ...]]]) -> list[str]:
    """The addresses in an answer of `getaddrinfo`, each once."""
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def is_named_inside(host: str) -> bool:
    """Whether the user's environment calls a host the house's own; `.corp.example` stands for all below it."""
    return matches(host, filter(None, re.split(r"[\s,]+", os.environ.get(INSIDE_HOSTS, "").lower())))


def matches(host: str, wanted: Iterable[str]) -> bool:
    """Whether a host is one of these names, or below one with a dot in front."""
    return any(host == name or (name.startswith(".") and host.endswith(name)) for name in wanted)


def host_name(base_url: str) -> str:
    """The host of a URL, in small letters, without the dot that may end it."""
    try:
        return httpx.URL(base_url).host.lower().rstrip(".")
    except (httpx.InvalidURL, TypeError):
        raise RequestError("this is no address", where="teacher.base_url", remedy="https://…/v1") from None


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A host that is an address, as one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_private(address: str) -> bool:
    """Whether an address is loopback, private, link-local or unique local."""
    parsed = address_of(address)
    return parsed is not None and any(parsed.version == net.version and parsed in net for net in INSIDE)


def needs_look_up(base_url: str) -> bool:
    """Whether a name stands in the URL whose address must be checked at each sending."""
    host = host_name(base_url)
    return not (is_loopback(base_url) or is_named_inside(host) or address_of(host))
