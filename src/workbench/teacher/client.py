"""The clients: requests to a teacher through the choke point, and what a call that brought no answer means."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx

from workbench import __version__
from workbench.engines.llamacpp import serve
from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.extras import entry_points, loaded
from workbench.files import file_sha256
from workbench.privacy.secrets import masked, masked_values, remember, values_without_held
from workbench.recipe import Teacher
from workbench.sources import resolve
from workbench.teacher.egress import SENDING, BlockedError, ChokePoint, EndlessReplyError, Sending
from workbench.teacher.payload import ErrorInReply, ShapeError, read_reply
from workbench.teacher.reach import base_url_of, refuse_readable, refuse_stray_key
from workbench.teacher.wire import Reply, Request, Usage

# The providers' HTTP interfaces, spoken as they document them: one call is one request, and nothing is tried again.
#
# OpenAI: platform.openai.com/docs/api-reference. Anthropic: docs.anthropic.com/en/api.

# A packed body could be a thousand times as long as it seems.
AGENT = {"User-Agent": f"llm-workbench/{__version__}", "Accept-Encoding": "identity"}
OPENAI_HOST = "api.openai.com"
# The current version takes no `temperature`; the one before it does, for models that still have one.
ANTHROPIC_VERSION, ANTHROPIC_WITH_TEMPERATURE = "2026-10-21", "2023-06-01"
PAGE = 100  # entries of one page of a list, the most that both providers give


class StatusError(Exception):
    """An answer whose status is no success. `body` is its JSON, or its text where it is none."""

    def __init__(self, response: httpx.Response):
        self.response, self.status_code = response, response.status_code
        text = response.text.strip()
        try:
            self.body: Any = json.loads(text)
        except (ValueError, RecursionError):
            self.body = text
        super().__init__(text or f"status {response.status_code} without a word")


class BodyError(Exception):
    """A success whose body is no JSON. `again`: it calls itself JSON, and may have been broken on its way."""

    def __init__(self, response: httpx.Response):
        kind = response.headers.get("content-type", "").partition(";")[0].strip() or "no content type"
        self.again = "json" in kind.lower()
        super().__init__(f"the endpoint answers with {kind} where JSON is due; it begins {response.text[:80]!r}")


def json_in(response: httpx.Response) -> Any:
    """The JSON of a success. Raises BodyError where there is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise BodyError(response) from None


@dataclass(frozen=True)
class Api:
    """A way to a provider: the client to send through, the address below which paths lie, the headers with the key."""

    http: httpx.AsyncClient
    base_url: str
    headers: Mapping[str, str]

    async def call(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **content: Any
    ) -> httpx.Response:
        """One request to a path below the base, or to a whole address that the provider gave. Raises StatusError."""
        url = path if "://" in path else f"{self.base_url.rstrip('/')}{path}"
        response = await self.http.request(method, url, headers={**self.headers, **(headers or {})}, **content)
        if not response.is_success:
            raise StatusError(response)
        return response

    async def entries(self, path: str, after: str) -> AsyncIterator[dict[str, Any]]:
        """Every entry of a list, page after page; `after` is the name of the parameter that asks for the next one."""
        cursor: dict[str, str] = {}
        while True:
            page = json_in(await self.call("GET", path, params={"limit": str(PAGE), **cursor}))
            for entry in page["data"]:
                yield entry
            if not page.get("has_more") or not page["data"]:
                return
            cursor = {after: page["data"][-1]["id"]}


def openai_api(key: str, base_url: str, http: httpx.AsyncClient) -> Api:
    """OpenAI's own service, or anything that speaks as it does."""
    headers = {**AGENT, "Authorization": f"Bearer {key}"}
    if httpx.URL(base_url).host == OPENAI_HOST:  # who pays, for a key of several organisations; nobody else's business
        named = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
        headers |= {header: os.environ[name] for header, name in named.items() if os.environ.get(name)}
    return Api(http, base_url, headers)


def anthropic_api(key: str, base_url: str, http: httpx.AsyncClient) -> Api:
    """Anthropic's service."""
    return Api(http, base_url, {**AGENT, "x-api-key": key, "anthropic-version": ANTHROPIC_VERSION})


def version_for(*bodies: Mapping[str, Any]) -> dict[str, str]:
    """The header that names the version of Anthropic's API which takes all of these bodies."""
    return {"anthropic-version": ANTHROPIC_WITH_TEMPERATURE} if any("temperature" in body for body in bodies) else {}


# Words for an account that has used up its credit or its own limit: trying again is of no use.
SPENT = (
    "insufficient_quota", "billing_error", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "enforced_spend_limit_reached",
)  # fmt: skip
RETIRED = ("deprecated", "retired", "decommissioned", "no longer available", "shut down", "sunset")
MAX_RETRY_AFTER_S = 300.0
Post = Callable[[Mapping[str, Any]], Awaitable[Any]]


class TroubleError(Exception):
    """A call that brought no answer. `kind`: `again` may succeed later, `row` concerns this row alone, `stop` all.

    `charged` says that the provider may have done the work: the cost is then assumed to be the worst, or what `usage`
    states of it.
    """

    def __init__(
        self, kind: Literal["again", "row", "stop"], message: str, *, status: int | None = None,
        retry_after: float | None = None, charged: bool = False, filtered: bool = False,
        error: WorkbenchError | None = None, egress: str = "", usage: Usage | None = None,
    ):  # fmt: skip
        super().__init__(masked(message))
        self.kind, self.status, self.retry_after = kind, status, retry_after
        self.charged, self.filtered, self.error, self.egress = charged, filtered, error, egress
        self.usage = usage


@dataclass(frozen=True)
class Client:
    """An open way to a teacher. `identity` names the endpoint without its key; `api` is for all that is no question.

    An entry point's client may have none: then there are no batches.
    """

    teacher: Teacher
    identity: str
    post: Post
    api: Api | None

    async def ask(self, request: Request, sending: Sending) -> Reply:
        """One call, one answer. Raises TroubleError, sorted by what it means."""
        token = SENDING.set(sending)
        try:
            payload = values_without_held(await self.post(request.body))  # a server may repeat the key it was sent
            return read_reply(wire_of(self.teacher), payload, request)
        except RequestError as error:  # the choke point's: nothing may go there at all
            raise TroubleError("stop", str(error), error=error, egress=sending.hash) from error
        except ErrorInReply as error:
            trouble = by_status(error.status, error.message, error.code, None, self.teacher, sending.hash)
            trouble.usage, trouble.charged = error.usage, error.usage is not None
            raise trouble from error
        except ShapeError as error:  # paid for, and no answer
            kind: Literal["again", "row"] = "again" if error.again else "row"
            raise TroubleError(
                kind, str(error), status=200, charged=True, egress=sending.hash, usage=error.usage
            ) from error
        except Exception as error:
            raise sorted_out(error, self.teacher, sending) from error
        finally:
            SENDING.reset(token)


def wire_of(teacher: Teacher) -> str:
    """Whose shapes the requests have."""
    return "anthropic" if teacher.api == "anthropic" else "openai"


def key_of(teacher: Teacher, base_url: str = "") -> str:
    """The key, from the environment variable that the recipe names.

    RequestError when it is not set, or is not for this address (the teacher's own, where none is given).
    """
    if not teacher.key_variable:
        return "none"
    key = os.environ.get(teacher.key_variable, "").strip()
    if not key:
        raise RequestError(
            f"the environment variable {teacher.key_variable} is not set",
            where="teacher.key_variable",
            remedy=f"export {teacher.key_variable}=…",
        )
    remember(key)
    if base := base_url or base_url_of(teacher):
        refuse_stray_key(teacher.key_variable, base)
        refuse_readable(teacher, base, "public")
    return key


@asynccontextmanager
async def open_client(teacher: Teacher, identity: str, base_url: str, choke: ChokePoint) -> AsyncIterator[Client]:
    """The client for the teacher's API: `openai`, `anthropic`, `local_gguf`, or an entry point in `workbench.teachers`.

    An entry point is `open(teacher, key, base_url, http) -> (post, api)`: `post` takes a chat-completions body and
    gives the JSON of a chat completion; it must send through `http` alone. `api` is an `Api` whose files and batches
    are OpenAI's, or None.
    """
    opener = {"openai": openai_post, "local_gguf": openai_post, "anthropic": anthropic_post}.get(teacher.api)
    if opener is None:
        offered = {e.name: e for e in entry_points(group="workbench.teachers")}
        if teacher.api not in offered:
            known = ("openai", "anthropic", "local_gguf", *offered)
            raise RequestError(f"no such API {teacher.api!r}", where="teacher.api", remedy=nearest(teacher.api, known))
        opener = loaded(offered[teacher.api], Callable, "teacher.api")  # type: ignore[arg-type]
    timeout = httpx.Timeout(teacher.timeout_s, connect=min(20.0, teacher.timeout_s))
    async with httpx.AsyncClient(transport=choke, timeout=timeout, follow_redirects=False) as http:
        post, api = opener(teacher, key_of(teacher, base_url), base_url, http)
        yield Client(teacher, identity, post, api)


def openai_post(teacher: Teacher, key: str, base_url: str, http: httpx.AsyncClient) -> tuple[Post, Api]:
    """Chat completions."""
    api = openai_api(key, base_url, http)

    async def post(body: Mapping[str, Any]) -> Any:
        # Some servers stream unless they are told not to. What is hashed is the question, without this.
        return json_in(await api.call("POST", "/chat/completions", json={"stream": False, **body}))

    return post, api


def anthropic_post(teacher: Teacher, key: str, base_url: str, http: httpx.AsyncClient) -> tuple[Post, Api]:
    """Messages."""
    api = anthropic_api(key, base_url, http)

    async def post(body: Mapping[str, Any]) -> Any:
        return json_in(await api.call("POST", "/v1/messages", headers=version_for(body), json=dict(body)))

    return post, api


def sorted_out(error: Exception, teacher: Teacher, sending: Sending) -> TroubleError:
    """What an exception on the way to an answer means: a StatusError, httpx's own, or the choke point's."""
    left = sending.hash
    if isinstance(error, BodyError):
        return TroubleError("again" if error.again else "row", str(error), status=200, charged=True, egress=left)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RequestError):  # the choke point's, wrapped by the SDK
            return TroubleError("stop", str(cause), error=cause)
        if isinstance(cause, BlockedError):
            return TroubleError("row", f"not sent: {cause}", filtered=True)
        if isinstance(cause, httpx.ConnectError):
            return TroubleError("again", f"no connection: {cause}", egress=left)
        if isinstance(cause, EndlessReplyError):  # none that is paid for by its words is so long
            remedy = "look at what stands at teacher.base_url: no answer of max_tokens is so long"
            what = WorkbenchError(str(cause), where="teacher.base_url", remedy=remedy)
            return TroubleError("stop", str(cause), error=what, charged=True, egress=left)
        cause = cause.__cause__
    status = getattr(error, "status_code", None)
    if status is None:
        if not left:  # it never came to the choke point: no such request can be made
            text = masked(f"{type(error).__name__}: {error}")
            return TroubleError(
                "stop", text, error=WorkbenchError(f"the request cannot be sent: {text}", where="teacher")
            )
        return TroubleError("again", f"{type(error).__name__}: {error}", charged=True, egress=left)
    message, code = message_of(error)
    return by_status(int(status), message, code, retry_after_of(error), teacher, left)


def by_status(
    status: int, message: str, code: str, retry_after: float | None, teacher: Teacher, left: str
) -> TroubleError:
    """What an HTTP status means, as the providers document it."""
    text = f"{status}: {message}"

    def stop(error: WorkbenchError) -> TroubleError:
        return TroubleError("stop", text, status=status, error=error, egress=left)

    if status in (401, 403):
        return stop(
            RequestError(
                f"the provider does not accept the key ({message})",
                where="teacher.key_variable",
                remedy=f"check the key in {teacher.key_variable}, and that it may use {teacher.model}",
            )
        )
    if status == 402 or any(word in SPENT for word in code.split()):
        return stop(
            WorkbenchError(
                f"the account has no credit left ({message})",
                where=f"teacher {teacher.model}",
                remedy="add credit; the same command goes on from here",
            )
        )
    if status == 404 or {"model_not_found", "not_found_error"} & set(code.split()):
        retired = any(word in message.lower() for word in RETIRED)
        what = f"the provider has retired {teacher.model!r}" if retired else f"the provider knows no {teacher.model!r}"
        remedy = "choose its successor, and price it" if retired else "check teacher.model and teacher.base_url"
        return stop(RequestError(f"{what} ({message})", where="teacher.model", remedy=remedy))
    if status == 429 or status in (408, 409) or status >= 500:
        return TroubleError("again", text, status=status, retry_after=retry_after, egress=left)
    return TroubleError("row", text, status=status, filtered="content" in code or "policy" in code, egress=left)


def message_of(error: Any) -> tuple[str, str]:
    """(message, codes with blanks between) from an error's JSON body: its code, its type and its details' code.

    Some providers repeat the key they refuse: it is masked before anything is cut, since half a key is one too.
    """
    body = masked_values(getattr(error, "body", None))
    inner = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(inner, dict):
        details = inner.get("details")
        codes = (inner.get("code"), inner.get("type"), details.get("error_code") if isinstance(details, dict) else None)
        return " ".join(str(inner.get("message", "")).split())[:300], " ".join(str(word) for word in codes if word)
    return " ".join(masked(str(error)).split())[:300], ""


def retry_after_of(error: Any) -> float | None:
    """Seconds to wait, from `retry-after-ms`, or `retry-after` in seconds or as a date (RFC 9110, 10.2.3)."""
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif "retry-after" in headers:
            header = headers["retry-after"]
            try:
                seconds = float(header)
            except ValueError:
                seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        else:
            return None
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


# A teacher that is a GGUF file: llama.cpp's server on loopback, started for the run and stopped with it.

CONTEXT = 4096  # tokens of one conversation, the answer included
MOST_AT_ONCE = 8  # slots; each holds a context of its own in memory


def at_once(teacher: Teacher) -> int:
    """How many requests the teacher is sent at once: as many as the recipe says, or as a server started here takes."""
    return min(teacher.concurrency, MOST_AT_ONCE) if teacher.api == "local_gguf" else teacher.concurrency


def gguf_of(teacher: Teacher) -> Path:
    """The GGUF that `teacher.source` names: a file, or a folder that holds one."""
    if not teacher.source:
        raise RequestError(
            "no GGUF is named",
            where="teacher.source",
            remedy="teacher.source=file:model.gguf, or mlflow:models:/NAME@champion",
        )
    path = resolve(teacher.source, sha256=teacher.sha256)
    if path.is_file():
        return path
    files = sorted(path.rglob("*.gguf"))
    if len(files) != 1:
        raise RequestError(
            f"{len(files)} GGUF files in {path}, where one is wanted",
            where="teacher.source",
            remedy="name the file itself",
        )
    return files[0]


@contextmanager
def local_server(teacher: Teacher, threads: int | None) -> Iterator[tuple[str, str]]:
    """(base URL, identity): the identity is the file's digest, so that a port that changes buys nothing anew."""
    gguf = gguf_of(teacher)
    with serve(gguf, parallel=at_once(teacher), context=CONTEXT, threads=threads) as (url, _):
        yield f"{url}/v1", f"gguf:{file_sha256(gguf)[:32]}"
