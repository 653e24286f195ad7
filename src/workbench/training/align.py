"""Two tokenizers' tokens of one text, aligned by their bytes into chunks that both cut the text at.

Nothing here needs torch, and nothing looks at characters: a token may end inside one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from workbench.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Chunk:
    """A run of the teacher's tokens and one of the student's that hold the same bytes, as ranges of token numbers."""

    teacher: range
    student: range


@dataclass(frozen=True)
class Alignment:
    """Chunks in the text's order."""

    chunks: tuple[Chunk, ...]

    def student_chunks(self, tokens: int) -> list[int]:
        """For each of the student's tokens its chunk's number, −1 for none."""
        numbers = [-1] * tokens
        for number, chunk in enumerate(self.chunks):
            numbers[chunk.student.start : chunk.student.stop] = [number] * len(chunk.student)
        return numbers

    def teacher_logprobs(self, logprobs: Sequence[float]) -> list[float]:
        """Each chunk's log-likelihood, from the teacher's log-probability of each of its tokens."""
        return [sum(logprobs[i] for i in chunk.teacher) for chunk in self.chunks]


def align(teacher: Sequence[bytes], student: Sequence[bytes]) -> Alignment:
    """The smallest chunks that begin and end where both sides have a token's end.

    Where both say the same bytes the chunks cover all of them. Where they differ (a stop token, a beginning, a
    normalised character) chunks lie in what both begin with and in what both end with. A token without bytes is in
    no chunk, unless it stands inside one.
    """
    text, ours = b"".join(teacher), b"".join(student)
    ends, own = token_ends(teacher), token_ends(student)
    head, shift = shared_prefix(text, ours), len(ours) - len(text)
    tail = shared_prefix(text[head:][::-1], ours[head:][::-1])
    meet = sorted(end for end in set(ends).intersection(own) if end <= head)
    after = sorted(end for end in set(ends) if end >= len(text) - tail and end + shift in own)
    spans = [(a, b, 0) for a, b in pairwise(meet)] + [(a, b, shift) for a, b in pairwise(after)]
    return Alignment(
        tuple(Chunk(tokens_between(ends, a, b), tokens_between(own, a + by, b + by)) for a, b, by in spans)
    )


def token_ends(tokens: Sequence[bytes]) -> dict[int, tuple[int, int]]:
    """Where tokens end and begin → how many tokens lie before, without and with those that hold no bytes there."""
    ends: dict[int, tuple[int, int]] = {}
    for count, end in enumerate(accumulate(map(len, tokens), initial=0)):
        ends[end] = (ends.get(end, (count, count))[0], count)
    return ends


def tokens_between(ends: Mapping[int, tuple[int, int]], start: int, stop: int) -> range:
    """The tokens of a span of bytes; those without bytes at either edge are left outside."""
    return range(ends[start][1], ends[stop][0])


def shared_prefix(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare at once, a loop over bytes would be slow
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level BPE's token (GPT-2's alphabet: one printable character a byte)."""
    return bytes(BYTE_OF[character] for character in token)


def sentencepiece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece token: `▁` is a space, `<0x0A>` a byte."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable Latin-1 stands for itself, each other byte for the next character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF = byte_alphabet()


def converter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """How this tokenizer's tokens are read as bytes, by the decoder that it states."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        decoder = repr(backend.decoder)
        if "ByteLevel(" in decoder:
            return byte_level_bytes
        if "▁" in decoder or "ByteFallback(" in decoder:
            return sentencepiece_bytes
    elif hasattr(tokenizer, "sp_model"):
        return sentencepiece_bytes
    elif type(tokenizer).__name__ == "ByT5Tokenizer":
        return lambda token: token.encode("latin-1")
    raise RequestError(
        f"a {type(tokenizer).__name__} does not say which bytes its tokens stand for",
        where="tokenizer",
        remedy="use a byte-level BPE or SentencePiece model, or distil from text alone",
    )


def token_bytes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str | None = None) -> list[bytes]:
    """The bytes of each token of a Hugging Face tokenizer: byte-level BPE, SentencePiece-like, or one token a byte.

    An added or special token has its own spelling's. With the `text` that was tokenized given, the space that
    SentencePiece writes before it is taken from the first token. Raises RequestError for tokenizers that lose bytes,
    such as WordPiece.
    """
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    convert, tokens = converter(tokenizer), tokenizer.convert_ids_to_tokens(list(ids))
    spelled = [added[i].encode() if i in added else convert(token) for i, token in zip(ids, tokens, strict=True)]
    if text is not None and spelled and b"".join(spelled) == b" " + text.encode():
        spelled[0] = spelled[0].removeprefix(b" ")
    return spelled


def ids_by_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """The token id of every byte string that is one token: a teacher's alternatives as the student's ids.

    Where several tokens hold the same bytes, the likeliest to be meant is taken: a plain token before one that spells
    a byte, that before an added one, and then the lower id.
    """
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder

    def rank(number: int) -> tuple[bool, bool, int]:
        return number in added, BYTE_PIECE.fullmatch(names[number]) is not None, number

    ids = sorted(names, key=rank)
    number_of: dict[bytes, int] = {}
    for number, spelled in zip(ids, token_bytes(tokenizer, ids), strict=True):
        number_of.setdefault(spelled, number)
    return number_of
