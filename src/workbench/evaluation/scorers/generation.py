"""generation: the answer is free text, held against a wanted one by what both have in common.

chrF as sacrebleu computes it (Popović 2015: character n-grams to 6, β = 2) and ROUGE-L (Lin 2004: F1 of the longest
common subsequence of words), both 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from workbench.evaluation.scorers.scorer import Scorer
from workbench.recipe.schema import Evaluate
from workbench.words import words_of

if TYPE_CHECKING:
    from sacrebleu.metrics import CHRF

METRICS = ["chrf", "rouge_l", "exact_match", "length_ratio"]


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """chrF, ROUGE-L, whether the texts are equal after stripping, and how many times as long the answer is."""
    return dict(zip(METRICS, compared(expected.strip(), answer.strip())))


@lru_cache(maxsize=65_536)  # a report and its page score the same answers several times
def compared(wanted: str, got: str) -> tuple[float, float, float, float]:
    """(chrF, ROUGE-L, equal, length of the answer over the wanted one's in characters)."""
    equal = float(wanted == got)
    if not wanted or not got:
        return equal, equal, equal, equal or float(len(got))
    wanted_words, got_words = words(wanted), words(got)
    # Texts of signs alone have no words; sacrebleu sums in floats, so that equal texts may miss 1 by a hair.
    rouge = rouge_l(wanted_words, got_words) if wanted_words and got_words else equal
    near = chrf().sentence_score(got, [wanted]).score / 100
    return (equal or near), (equal or rouge), equal, len(got) / len(wanted)


@lru_cache(maxsize=1)
def chrf() -> CHRF:
    """sacrebleu's chrF, made once."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def rouge_l(wanted: Sequence[str], got: Sequence[str]) -> float:
    """ROUGE-L's F1 of two texts that have words (Lin, Text Summarization Branches Out, 2004, section 3.1, β = 1)."""
    return 2 * common_length(wanted, got) / (len(wanted) + len(got))


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words the longest common subsequence has (Hyyrö, AWOCA 2004): a row of the table is one whole number."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(first)) - 1
    open_places = whole
    for word in second:
        met = open_places & places.get(word, 0)
        open_places = ((open_places + met) | (open_places - met)) & whole
    return len(first) - open_places.bit_count()


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, without case; where a script sets no blanks, each letter with its marks."""
    return words_of(text.replace("_", " "))


SCORER = Scorer(lambda evaluate: METRICS, score, handed_over=("exact_match",))
