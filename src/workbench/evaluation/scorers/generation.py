"""generation: the answer is free text, held against a wanted one by what both have in common.

chrF as sacrebleu computes it (Popović 2015: character n-grams to 6, β = 2), ROUGE-L as rouge-score does (Lin 2004: F1
of the longest common run of words), both 0 to 1.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from workbench.evaluation.scorers.scorer import Scorer
from workbench.recipe.nouns import Evaluate

METRICS = ["chrf", "rouge_l", "exact_match", "length_ratio"]
# Scripts written without blanks between words: each letter is a word of its own there.
UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR")


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """chrF, ROUGE-L, whether the texts are equal after stripping, and how many times as long the answer is."""
    return dict(zip(METRICS, compared(expected.strip(), answer.strip())))


@lru_cache(maxsize=65_536)  # a report and its page score the same answers several times
def compared(wanted: str, got: str) -> tuple[float, float, float, float]:
    """(chrF, ROUGE-L, equal, length of the answer over the wanted one's in characters)."""
    equal = float(wanted == got)
    if not wanted or not got:
        return equal, equal, equal, equal or float(len(got))
    chrf, rouge = libraries()
    # Texts of signs alone have no words; sacrebleu sums in floats, so that equal texts may miss 1 by a hair.
    found = rouge.score(wanted, got)["rougeL"].fmeasure if words(wanted) and words(got) else equal
    near = chrf.sentence_score(got, [wanted]).score / 100
    return (equal or near), (equal or found), equal, len(got) / len(wanted)


@lru_cache(maxsize=1)
def libraries() -> tuple[Any, Any]:
    """sacrebleu's chrF and rouge-score's ROUGE-L, the latter with words of every script."""
    from rouge_score import tokenizers
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    class Words(tokenizers.Tokenizer):
        """rouge-score's own keeps ASCII letters and digits only: a Greek answer would be empty."""

        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return CHRF(), RougeScorer(["rougeL"], tokenizer=Words())


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, without case; where a script sets no blanks, each letter."""
    spread = "".join(spaced(c) for c in unicodedata.normalize("NFC", text).casefold())
    return spread.split()


@lru_cache(maxsize=65_536)
def spaced(character: str) -> str:
    """The character as a part of a word, a word of its own, or a blank."""
    if unicodedata.category(character)[0] not in "LMN":
        return " "
    alone = ord(character) > 0x7F and unicodedata.name(character, "").startswith(UNSPACED)
    return f" {character} " if alone else character


SCORER = Scorer(lambda evaluate: METRICS, score)
