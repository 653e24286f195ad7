"""A text as its words, by Unicode's rules: marks belong to letters, and a script without spaces is cut into signs.

Near copies, overlaps, memorised runs and mentions all count in these words, so that a rule means the same in every
script. Chinese, Japanese, Thai, Lao, Khmer, Burmese and their kin set no space between words: there each sign (a letter
with its marks) stands alone, and a run of so many words is one of as many signs as so many words take.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

ASCII_WORD = re.compile(r"\w+")
# Signs a word, against the English of 158 texts of Django's catalogues (5.2): Chinese 1.5, Japanese 2.5 (of which about
# half are Han), Thai 3.2, Khmer 2.6. In parts of a word, so that sums are whole numbers; a little short, to be sure.
WORD, HAN, SIGN = 10, 7, 4


class Patterns(NamedTuple):
    """The compiled expressions of the `regex` package, which is imported when a text is not plain ASCII."""

    word: re.Pattern[str]
    sign: re.Pattern[str]
    han: re.Pattern[str]


@lru_cache(maxsize=1)
def patterns() -> Patterns:
    """A word or a sign; the beginning of a sign; the beginning of a Chinese one.

    SA is the class that Unicode's line breaking (UAX 14) has for scripts whose words only a dictionary can part. \\X is
    a letter with its marks (UAX 29). The two invisible joiners stand within words of Persian and Hindi.
    """
    import regex

    unspaced = r"(?=[\p{L}\p{N}])[\p{LB=SA}\p{sc=Han}\p{scx=Hira}\p{scx=Kana}]"
    spaced = rf"(?!{unspaced})[\p{{L}}\p{{N}}\p{{M}}_][\p{{M}}\u200c\u200d]*"
    return Patterns(
        regex.compile(rf"(?={unspaced})\X\p{{M}}*|(?:{spaced})+"), regex.compile(unspaced), regex.compile(r"\p{sc=Han}")
    )


def words_of(text: str) -> list[str]:
    """A text's words in order, in one case, without punctuation; where a script sets no spaces, its signs."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return patterns().word.findall(unicodedata.normalize("NFC", without_unseen(text).casefold()))


# What pages and PDFs put into words, and nobody sees: soft hyphens, spaces of no width, byte order marks.
UNSEEN = ("\u00ad", "\u200b", "\u2060", "\ufeff")


def without_unseen(text: str) -> str:
    """A text without the signs that show nothing and mean nothing; a copy that has some is a copy."""
    for sign in UNSEEN:
        if sign in text:
            text = text.replace(sign, "")
    return text


def runs_of(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every run of `length` neighbouring words, by the word it begins with; none where there are fewer.

    A sign is a part of a word: a run of them has as many as make up `length` words, and begins at each.
    """
    if "".join(words).isascii() or not any(map(is_sign, words)):
        yield from zip(*(words[i:] for i in range(length)))
        return
    sizes, wanted = [size_of(word) for word in words], length * WORD
    end = held = 0
    for start, size in enumerate(sizes):
        while held < wanted and end < len(words):
            held += sizes[end]
            end += 1
        if held < wanted:
            return
        yield tuple(words[start:end])
        held -= size


def is_sign(word: str) -> bool:
    """Whether a word of `words_of` is a sign of a script that sets no spaces."""
    return not word.isascii() and patterns().sign.match(word) is not None


def size_of(word: str) -> int:
    """How much of a word this is: all of it, or a sign's share."""
    if not is_sign(word):
        return WORD
    return HAN if patterns().han.match(word) else SIGN


def word_count(text: str) -> int:
    """How many words a text has; signs count by their share of one."""
    return sum(map(size_of, words_of(text))) // WORD


def at_a_word(beginning: str) -> str:
    """A beginning that texts share, cut back to its last white space or sign, so that no word is cut in two."""
    ends = (i + 1 for i in range(len(beginning) - 1, -1, -1) if beginning[i].isspace() or is_sign(beginning[i]))
    return beginning[: next(ends, 0)]
