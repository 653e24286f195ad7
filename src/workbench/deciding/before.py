"""A router that looks at the prompt alone: character n-grams and a logistic model; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

LEAST_ROWS = 600  # of which half teach it and half choose its threshold
GRAMS, MOST_FEATURES = (1, 4), 20_000


def fit_before(texts: Sequence[str], harmful: Sequence[bool], seed: int) -> dict[str, Any] | None:
    """The model as plain values for JSON; None where all rows are alike, and nothing can be learned.

    TF-IDF of the n-grams of characters within words, and a logistic regression with balanced classes.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(map(bool, harmful))) < 2:
        return None
    counted = vectorizer()
    features = counted.fit_transform(texts)
    fitted = LogisticRegression(class_weight="balanced", max_iter=1000, random_state=seed).fit(features, harmful)
    grams = sorted(counted.vocabulary_, key=counted.vocabulary_.__getitem__)
    return {
        "grams": grams, "idf": [round(float(v), 6) for v in counted.idf_],
        "weights": [round(float(v), 6) for v in fitted.coef_[0]], "intercept": round(float(fitted.intercept_[0]), 6),
    }  # fmt: skip


def before_scores(model: Mapping[str, Any], texts: Sequence[str]) -> list[float]:
    """The log-odds that keeping each text at home does no harm: the higher the surer."""
    import numpy as np

    if not texts:
        return []
    counted = vectorizer(model["grams"])
    counted.idf_ = np.asarray(model["idf"], dtype=float)
    odds = counted.transform(texts) @ np.asarray(model["weights"], dtype=float) + model["intercept"]
    return [float(-value) for value in odds]


def vectorizer(grams: Sequence[str] | None = None) -> TfidfVectorizer:
    """Scikit-learn's, with our settings; a known list of n-grams is taken as it is."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = {gram: at for at, gram in enumerate(grams)} if grams is not None else None
    return TfidfVectorizer(
        analyzer="char_wb", ngram_range=GRAMS, max_features=None if known else MOST_FEATURES, sublinear_tf=True,
        vocabulary=known,
    )  # fmt: skip
