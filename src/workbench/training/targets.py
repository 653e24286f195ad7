"""A teacher's stored log-probabilities as what a row's tokens are held against: tokens, chunks of bytes, or labels.

Everything is aligned on the bytes of the answer that is trained on. The teacher may have written it otherwise (JSON
with other white space, inside a larger object, in a code fence): what of its words stands for which bytes is found
from the answer's end backwards, white space aside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from workbench.records import TokenRow, digest
from workbench.training.align import align, ids_by_bytes, token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHITE = b" \t\r\n"
KNOWN_SHARE = 0.98  # of the alternatives: with fewer among the student's tokens, the tokenizer is another
EXACT_SHARE = 0.5  # of a row's answer tokens that must be the teacher's own, one by one
CARRIED_SHARE = 0.5  # of an answer's bytes that the teacher must have said
MOST_LABELS = 16  # each is a sequence of its own in the student's forward pass
MOST_UNRESOLVED = 0.01  # probability of words that several labels begin with


class Spoken(Protocol):
    """One token of the teacher's answer: its bytes, its log-probability, and the likeliest (bytes, logprob)."""

    @property
    def token(self) -> bytes: ...
    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> Sequence[tuple[bytes, float]]: ...


@dataclass(frozen=True)
class TokenTargets:
    """For each of the answer's tokens, its stop token included, the teacher's likeliest as ids; () where not known."""

    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ChunkTargets:
    """For each of the answer's tokens its chunk, −1 for none; and each chunk's log-likelihood under the teacher."""

    chunk_of: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class LabelTargets:
    """Every label's answer as token ids with the stop token, the teacher's log-probability of it, and the row's own."""

    answers: tuple[tuple[int, ...], ...]
    logprobs: tuple[float, ...]
    own: int


@dataclass(frozen=True)
class Rejected:
    """Another answer to the row's prompt, as a row of its own: it is to become less likely than the row's."""

    row: TokenRow


@dataclass(frozen=True)
class Sampled:
    """The student answers the row's prompt itself, so many times: each answer takes the room of a row."""

    samples: int


Target = TokenTargets | ChunkTargets | LabelTargets | Rejected | Sampled


def sequences(row: TokenRow, target: Target | None) -> list[TokenRow]:
    """A row as the sequences that the student reads: one, for soft labels one a label, in a pair the rejected next.

    A prompt that is sampled is as many sequences as it has answers.
    """
    if isinstance(target, Rejected):
        return [row, target.row]
    if isinstance(target, Sampled):
        return [row] * target.samples
    if not isinstance(target, LabelTargets):
        return [row]
    prompt = row.input_ids[: row.answer_start]
    return [
        TokenRow(row.id, (*prompt, *ids), (False,) * len(prompt) + (True,) * len(ids), row.where, row.weight)
        for ids in target.answers
    ]


def targets_of(
    rows: Sequence[TokenRow],
    spoken: Mapping[str, Sequence[Spoken]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    alignment: str = "auto",
    labels: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[dict[str, Target], Counter[str]]:
    """Each row's target by its id, and how many rows went which way: labels, tokens, bytes, text, not stored.

    `labels` is the closed set of answers, each with its token ids. `auto` takes exact labels where all of them can be
    had, else tokens where the tokenizer is the student's, else chunks of bytes; a named alignment takes no other.
    """
    known = ids_by_bytes(tokenizer)
    same = share_known(spoken, known) >= KNOWN_SHARE
    targets: dict[str, Target] = {}
    ways: Counter[str] = Counter()
    for row in rows:
        if row.id not in spoken:
            ways["not stored"] += 1
            continue
        ways[way_of(row, spoken[row.id], tokenizer, known, same, alignment, labels or {}, targets)] += 1
    return targets, ways


def way_of(
    row: TokenRow,
    spoken: Sequence[Spoken],
    tokenizer: PreTrainedTokenizerBase,
    known: Mapping[bytes, int],
    same: bool,
    alignment: str,
    labels: Mapping[str, tuple[int, ...]],
    targets: dict[str, Target],
) -> str:
    """Put the row's target into `targets` and name the way; `text` where none fits."""
    answer = answer_ids(row)
    student = token_bytes(tokenizer, answer[:-1])
    pieces = carried([token.token for token in spoken], b"".join(student))
    if pieces is None:
        return "text"
    tries = {
        "labels": lambda: label_targets(spoken, pieces, answer, labels),
        "tokens": lambda: token_targets(spoken, pieces, student, answer[-1], known) if same else None,
        "bytes": lambda: chunk_targets(spoken, pieces, student),
    }
    for way in tries if alignment == "auto" else [alignment]:
        target = tries[way]()
        if target is not None:
            targets[row.id] = target
            return way
    return "text"


def share_known(spoken: Mapping[str, Sequence[Spoken]], known: Mapping[bytes, int]) -> float:
    """How many of the teacher's alternatives are tokens of the student's; those without bytes do not count."""
    hits = total = 0
    for answer in spoken.values():
        for spoken_token in answer:
            for token, _ in spoken_token.top:
                hits, total = hits + (token in known), total + (token != b"")
    return hits / max(total, 1)


def answer_ids(row: TokenRow) -> tuple[int, ...]:
    """The row's last answer with its stop token."""
    return row.input_ids[row.answer_start :]


def carried(tokens: Sequence[bytes], answer: bytes) -> list[bytes] | None:
    """Which of the answer's bytes each token of the reply stands for; None when it did not say most of them.

    White space that only one side has is passed over: the answer's own is joined to the token after it.
    """
    reply = b"".join(tokens)
    owner = [number for number, token in enumerate(tokens) for _ in token]
    at = reply.rfind(answer)
    i = at + len(answer) if at >= 0 else reply.rfind(answer[-1:]) + 1
    j, last = len(answer), -1
    pieces = [bytearray() for _ in tokens]
    while i > 0 and j > 0:
        if reply[i - 1] == answer[j - 1]:
            last = owner[i - 1]
            pieces[last].append(answer[j - 1])
            i, j = i - 1, j - 1
        elif answer[j - 1] in WHITE and last >= 0:
            pieces[last].append(answer[j - 1])
            j -= 1
        elif reply[i - 1] in WHITE:
            i -= 1
        else:
            break
    if not answer or len(answer) - j < CARRIED_SHARE * len(answer):
        return None
    return [bytes(piece[::-1]) for piece in pieces]


def token_targets(
    tokens: Sequence[Spoken], pieces: Sequence[bytes], student: Sequence[bytes], stop: int, known: Mapping[bytes, int]
) -> TokenTargets | None:
    """Targets where the teacher's token is the student's, byte for byte; None where too few are."""
    ids: list[tuple[int, ...]] = [()] * (len(student) + 1)
    logprobs: list[tuple[float, ...]] = [()] * (len(student) + 1)
    exact = 0
    for chunk in align(pieces, student).chunks:
        if len(chunk.teacher) == len(chunk.student) == 1:
            token, at = tokens[chunk.teacher[0]], chunk.student[0]
            if token.token == student[at]:
                ids[at], logprobs[at] = alternatives(token, known[token.token], known)
                exact += 1
    if exact < EXACT_SHARE * len(student) or not exact:
        return None
    spoken = max(number for number, piece in enumerate(pieces) if piece)
    end = tokens[spoken + 1] if spoken + 2 == len(tokens) else None
    if end is not None and (end.token == b"" or known.get(end.token) == stop):
        ids[-1], logprobs[-1] = alternatives(end, stop, known)
    return TokenTargets(tuple(ids), tuple(logprobs))


def alternatives(spoken: Spoken, own: int, known: Mapping[bytes, int]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The teacher's likeliest tokens as the student's ids, each once; what the student has no token for is left out.

    It belongs to the loss's bucket for all others. The token that was said is there, whether it was likely or not.
    """
    likely: dict[int, float] = {}
    for token, logprob in spoken.top:
        number = own if token == spoken.token else known.get(token) if token else None
        if number is not None:
            before = likely.get(number)
            likely[number] = logprob if before is None else math.log(math.exp(before) + math.exp(logprob))
    likely.setdefault(own, spoken.logprob)
    return tuple(likely), tuple(likely.values())


def chunk_targets(tokens: Sequence[Spoken], pieces: Sequence[bytes], student: Sequence[bytes]) -> ChunkTargets | None:
    """The smallest chunks that both cut the answer at; None where there is none."""
    alignment = align(pieces, student)
    if not alignment.chunks:
        return None
    likely = alignment.teacher_logprobs([token.logprob for token in tokens])
    return ChunkTargets((*alignment.student_chunks(len(student)), -1), tuple(likely))


def label_targets(
    tokens: Sequence[Spoken], pieces: Sequence[bytes], answer: tuple[int, ...], labels: Mapping[str, tuple[int, ...]]
) -> LabelTargets | None:
    """The teacher's probability of every label, where its alternatives tell them all apart; else None.

    Along the answer, an alternative that only one other label goes on with is that label's. A label that begins
    another, or words that fit several, leave it open.
    """
    names = [label.encode() for label in labels]
    own = next((n for n, ids in enumerate(labels.values()) if ids == answer), None)
    if own is None or not 2 <= len(names) <= MOST_LABELS:
        return None
    if any(a != b and b.startswith(a) for a in names for b in names):
        return None
    chances, unresolved, sure, begun = [0.0] * len(names), 0.0, 0.0, b""
    for spoken, piece in zip(tokens, pieces, strict=True):
        if not piece or len(fitting(begun, names)) == 1:
            continue
        frame = spoken.token[: spoken.token.find(piece)] if piece in spoken.token else b""
        for token, logprob in spoken.top:
            if token == spoken.token or not token.startswith(frame):
                continue
            fits = fitting(begun + token[len(frame) :], names)
            if len(fits) == 1:
                chances[fits[0]] += math.exp(sure + logprob)
            elif fits:
                unresolved += math.exp(sure + logprob)
        sure, begun = sure + spoken.logprob, begun + piece
    chances[own] += math.exp(sure)
    if fitting(begun, names) != [own] or not all(chances) or unresolved > MOST_UNRESOLVED:
        return None
    return LabelTargets(tuple(labels.values()), tuple(math.log(chance) for chance in chances), own)


def fitting(begun: bytes, names: Sequence[bytes]) -> list[int]:
    """The labels that begin so, or that this begins with; all of them when nothing is said yet."""
    return [n for n, name in enumerate(names) if name.startswith(begun) or (begun and begun.startswith(name))]


def told_ways(ways: Mapping[str, int]) -> str:
    """The counts in one line."""
    words = {
        "labels": "by exact soft labels over the closed set",
        "tokens": "token by token, the tokenizer being the student's",
        "bytes": "by chunks of bytes, the tokenizer being another",
        "text": "by their text alone, for their answers cannot be aligned",
        "not stored": "by their text alone, for no log-probabilities are stored",
    }
    return "log-probabilities: " + "; ".join(f"{ways[way]:,} rows {how}" for way, how in words.items() if ways.get(way))


def targets_digest(targets: Mapping[str, Target]) -> str:
    """What a checkpoint of such a training must have been made from."""
    return digest(sorted((row, repr(target)) for row, target in targets.items()))
