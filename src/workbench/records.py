"""The values that travel between rooms: frozen, plain, written to JSON as they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """One row: a conversation that ends with the assistant's answer, and where it came from.

    `group` ties near copies together: a split never parts them. `where` is `file:row`, for errors.
    `own_text` is the user's text without what every row shares, such as the recipe's instruction.
    """

    id: str
    messages: tuple[Message, ...]
    group: str = ""
    where: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    own_text: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every message before the final answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The final assistant message: what an arm is asked for and scored against."""
        return self.messages[-1].content

    @property
    def text(self) -> str:
        """The row's own text, else its user turns joined: what duplicates and leakage are judged by."""
        return self.own_text or "\n".join(m.content for m in self.prompt if m.role == "user")


@dataclass(frozen=True)
class TokenRow:
    """One row as the model will see it: token ids, and for each whether it carries loss; `weight` scales that loss."""

    id: str
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    where: str = ""
    weight: float = 1.0

    @property
    def answer_start(self) -> int:
        """Where the last answer begins."""
        return len(self.trained) - self.trained[::-1].index(False)


@dataclass(frozen=True)
class Answer:
    """What an engine said to one prompt.

    `seconds` is wall time, shared evenly among the answers made at once: what an answer costs. `latency` is what one
    asker waits for the last token, `first_token` for the first (seconds; None where the engine does not tell).
    `logprob` is the natural log-probability of the tokens it said, the stop token included.
    """

    text: str
    finish: Literal["stop", "length"]
    tokens_in: int
    tokens_out: int
    seconds: float
    latency: float | None = None
    first_token: float | None = None
    logprob: float | None = None
    usd: float = 0.0


@dataclass(frozen=True)
class Another:
    """A further answer of a teacher to a row that has a label: another one, with its own share of the samples."""

    answer: str
    rationale: str = ""
    agreement: float = 1.0
    logprobs: bytes | None = None


@dataclass(frozen=True)
class Label:
    """What a teacher answered to one row, with what it cost and the hashes of the requests that bought it.

    `agreement` is the share of the samples that gave this answer; `logprobs` are packed, when they were asked for.
    `others` are the next commonest answers, where they were wanted; the n-th is called `other_id(id, n)`.
    """

    id: str
    answer: str
    model: str
    rationale: str = ""
    agreement: float = 1.0
    usd: float = 0.0
    requests: tuple[str, ...] = ()
    logprobs: bytes | None = None
    others: tuple[Another, ...] = ()


def other_id(row: str, number: int) -> str:
    """The id of the row that carries a prompt's `number`-th answer; the first (0) keeps the prompt's own."""
    return row if number == 0 else f"{row}~{number + 1}"


@dataclass(frozen=True)
class Artefact:
    """A file or folder with its SHA-256 (a folder's is taken over its files' names and digests)."""

    path: str
    sha256: str
    bytes: int


def canonical(value: Any) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces. The text that digests cover."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest(value: Any, length: int = 64) -> str:
    """The first `length` hex digits of the SHA-256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def message_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the `{"role", "content"}` dictionaries that chat templates and servers take."""
    return [asdict(m) for m in messages]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in 1 MiB pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def artefact(path: Path, root: Path, leave_out: Collection[str] = ()) -> Artefact:
    """Hash and size a file, or a folder file by file in sorted order; its path is relative to `root`.

    What lies below one of the folder's own entries named in `leave_out` does not count.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in files if p == path or p.relative_to(path).parts[0] not in leave_out]
    parts = {str(p.relative_to(path)) if p != path else p.name: file_sha256(p) for p in files}
    sha = next(iter(parts.values())) if path.is_file() else digest(parts)
    return Artefact(str(path.relative_to(root)), sha, sum(p.stat().st_size for p in files))
