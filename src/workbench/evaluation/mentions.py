"""Does a free answer hold the short one that was wanted?"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from workbench.evaluation.words import runs_of, words_of

EXACT = "="  # before a wanted answer: the whole answer must have this form
NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|\.\d)")
WRAPPING = " \t\r\n\"'`*“”‘’"


def mentions(expected: str, answer: str) -> bool:
    """Whether one of the wanted alternatives, parted by `|`, stands in the answer.

    Words must stand whole and in order; case, accents and punctuation do not count: `Roma|Rome` is in "it's ROME!",
    `cat` is not in "category". A number is any number of that value: `1000` is in "1,000.0 m", `5` is neither in "15"
    nor in "−5". With `=` in front of the first, the whole answer must equal an alternative, letter by letter, quotes,
    asterisks and a last full stop aside.

    It does not read: "it is not Paris" mentions Paris, and so does a list of all capitals. Short answers, and the same
    questions for every arm, keep that from deciding a comparison. Decimal commas are not understood.
    """
    if expected.startswith(EXACT):
        said = answer.strip(WRAPPING).removesuffix(".").strip(WRAPPING)
        return said in expected.removeprefix(EXACT).split("|")
    return any(holds(answer, alternative) for alternative in expected.split("|"))


def holds(answer: str, wanted: str) -> bool:
    """Whether one wanted word, phrase or number stands in the answer."""
    value = number(wanted)
    if value is not None:
        return value in [number(found) for found in NUMBER.findall(answer)]
    words = tuple(words_of(wanted))
    return bool(words) and words in runs_of(words_of(answer), len(words))


def number(text: str) -> Decimal | None:
    """The value of a number, thousands parted by commas or not; None for anything else."""
    if not NUMBER.fullmatch(text.strip()):
        return None
    try:
        return Decimal(text.strip().replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
