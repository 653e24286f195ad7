"""Addresses without what opens them: a user and password, or a token in the query, are found, refused and masked.

A secret belongs in the environment. One inside a URL would be written wherever the URL is: the recipe, the manifest,
the bundle, the tracking store, the screen.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote, urlsplit

from workbench.errors import RequestError

# `scheme://rest` anywhere in a text, up to a blank or a quote.
URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s\"'<>`]+)")
SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:key|api-?key|access-?key(?:-?id)?|pwd|passwd|pass|secret|token|sig|signature|credentials?)$"
    r"|(?:password|passwd|secret|token|apikey|signature)$",
    re.IGNORECASE,
)
NESTED_SECRET = re.compile(r"(?:pwd|passwd|password|token|secret)\s*=", re.IGNORECASE)  # as in odbc_connect=…
PORT = re.compile(r"\d{0,5}$")
# A lone user of these may be a token; elsewhere it is a name (`abfs://container@account`, `ssh://git@host`).
LONE_USER_IS_SECRET = ("http", "https")


def split_credentials(url: str) -> tuple[str, bool]:
    """The URL without a user, a password or a secret in its query, and whether it held one.

    Whatever is no URL comes back as it is. A password with unescaped `/`, `?`, `#` or `@` in it is found too.
    """
    match = URL.search(url)
    if not match:
        return url, False
    scheme, rest = match["scheme"], match["rest"]
    place, had = without_user(scheme.lower(), rest)
    place, secret = without_query_secrets(place)
    if not (had or secret):
        return url, False
    return url[: match.start()] + f"{scheme}://{place}" + url[match.end() :], True


def without_user(scheme: str, rest: str) -> tuple[str, bool]:
    """What follows `scheme://`, without the user and password in front of the host."""
    ends = [at for at in (rest.find(sign) for sign in "/?#") if at >= 0]
    authority = rest[: min(ends, default=len(rest))]
    user, at, host = authority.rpartition("@")
    if not at:
        # `user:p/w@host`: what stands after the colon is no port, and an @ comes later.
        _, colon, port = authority.rpartition(":")
        if not colon or PORT.match(port) or "@" not in rest or authority.startswith("["):
            return rest, False
        return rest.rpartition("@")[2], True
    if ":" not in user and scheme.split("+")[-1] not in LONE_USER_IS_SECRET:
        return rest, False
    return host + rest[len(authority) :], True


def without_query_secrets(place: str) -> tuple[str, bool]:
    """A URL's host, path and query without the parameters that are named, or hold, a secret."""
    front, mark, query = place.partition("?")
    if not mark:
        return place, False
    query, hash_mark, fragment = query.partition("#")
    parts = re.split(r"[&;]", query)
    kept = [part for part in parts if not is_secret(*part.partition("=")[::2])]
    if len(kept) == len(parts):
        return place, False
    return front + ("?" + "&".join(kept) if kept else "") + hash_mark + fragment, True


def is_secret(name: str, value: str) -> bool:
    """Whether a query's parameter is a secret, by its own name or by one inside it."""
    name, value = unquote(name).replace("_", "-"), unquote(value)
    return bool(value) and bool(SECRET_NAME.search(name) or NESTED_SECRET.search(value))


def without_passwords(text: str) -> str:
    """A text with each URL in it stripped of user, password and secret, for screens, files and errors."""
    return URL.sub(lambda match: split_credentials(match[0])[0], text)


def refuse_credentials(url: str, where: str, remedy: str) -> None:
    """RequestError, which does not repeat it, when a URL holds a user and password or a secret in its query."""
    clean, had = split_credentials(url)
    if had:
        raise RequestError(
            f"a password or token stands in this URL; it would be written into every file of the run ({clean})",
            where=where,
            remedy=remedy,
        )


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine by its loopback address, or by the name reserved for it.

    Any other name counts as another machine, also where it resolves to this one now: the next look-up may differ. So
    does a URL with a backslash or a blank in it, whose host clients read in different ways.
    """
    if re.search(r"[\\\s]", url):
        return False
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
