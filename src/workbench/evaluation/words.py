"""A text as words, for looking one text up in another: case, accents and punctuation do not count."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

ACCENT = re.compile("[\u0300-\u036f]")
# Chinese and Japanese put no space between words: there each sign is taken for one.
WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u9fff]+")


def plain(text: str) -> str:
    """The text in one case, without accents, with straight apostrophes."""
    if not text.isascii():
        text = ACCENT.sub("", unicodedata.normalize("NFKD", text.replace("’", "'")))
        text = unicodedata.normalize("NFC", text)
    return text.casefold()


def words_of(text: str) -> list[str]:
    """The words of a text in order, as `plain` writes them: `L'été, 3 fois` is l, ete, 3, fois."""
    return WORD.findall(plain(text))


def runs_of(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every run of `length` neighbouring words; none where there are fewer."""
    return zip(*(words[i:] for i in range(length)))
