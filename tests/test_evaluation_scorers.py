"""Scoring one answer: what counts as valid, what counts as right, and which names are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import RequestError
from workbench.evaluation import scorers
from workbench.recipe.nouns import Evaluate

FIELDS = ["category", "license"]
WANTED = '{"category": "Copyleft", "license": "gpl-2.0"}'


def scored(answer: str) -> dict[str, float]:
    return scorers.score("json_fields", FIELDS, WANTED, answer)


@pytest.mark.parametrize(
    "answer",
    [
        f"```json\n{WANTED}\n```",
        f"Sure: {WANTED}",
        WANTED + " That is all.",
        WANTED + WANTED,
        WANTED[:-1],
        f"[{WANTED}]",
        '"Copyleft"',
        '{"category": "Copyleft", "category": "Copyleft", "license": "gpl-2.0"}',
        '{"category": NaN}',
        "[" * 100_000,
        '{"category": ' + "9" * 5000 + "}",
        "",
    ],
)
def test_anything_but_one_json_object_is_invalid_and_wrong_in_every_field(answer: str) -> None:
    assert scored(answer) == {"category_accuracy": 0, "license_accuracy": 0, "exact_match": 0, "validity": 0}


def test_fields_are_scored_apart_and_strings_are_stripped() -> None:
    assert scored('\n {"license": "mit", "category": " Copyleft "} ') == {
        "category_accuracy": 1,
        "license_accuracy": 0,
        "exact_match": 0,
        "validity": 1,
    }


def test_case_matters_and_other_fields_do_not() -> None:
    assert scored('{"category": "copyleft", "license": "gpl-2.0"}')["category_accuracy"] == 0
    assert scored('{"category": "Copyleft", "license": "gpl-2.0", "sure": true}')["exact_match"] == 1
    assert scored('{"category": "Copyleft"}')["license_accuracy"] == 0


@pytest.mark.parametrize(
    ("wanted", "got", "right"),
    [(3, 3, 1), (3, 3.0, 1), (3, "3", 0), (1, True, 0), (None, None, 1), (["a"], ["a"], 1), ({"a": 1}, {"a": 2}, 0)],
)
def test_a_field_that_is_no_string_must_be_of_a_like_type(wanted: object, got: object, right: int) -> None:
    answer = scorers.score("json_fields", ["x"], json.dumps({"x": wanted}), json.dumps({"x": got}))
    assert answer["x_accuracy"] == right


def test_a_wanted_answer_without_the_field_is_refused_rather_than_scored() -> None:
    with pytest.raises(RequestError, match="no field 'licence'") as caught:
        scorers.score("json_fields", ["licence"], WANTED, WANTED)
    assert caught.value.where == "evaluate.fields"
    with pytest.raises(RequestError, match="not a JSON object"):
        scorers.score("json_fields", ["licence"], "Copyleft", WANTED)


@given(st.dictionaries(st.sampled_from(FIELDS), st.text(), min_size=2))
def test_the_wanted_answer_is_always_right_itself(fields: dict[str, str]) -> None:
    text = json.dumps(fields)
    assert set(scorers.score("json_fields", FIELDS, text, text).values()) == {1.0}


@given(st.text())
def test_no_text_breaks_a_scorer(answer: str) -> None:
    for scorer in scorers.SCORERS:
        values = scorers.score(scorer, FIELDS, WANTED, answer)
        assert set(values) == set(scorers.metric_names(scorer, FIELDS))
        scorers.labels(scorer, FIELDS, WANTED, answer)


def test_an_invalid_answer_has_a_label_that_no_wanted_answer_can_have() -> None:
    assert scorers.labels("json_fields", FIELDS, WANTED, "Copyleft") == {
        "category_macro_f1": ("Copyleft", scorers.INVALID),
        "license_macro_f1": ("gpl-2.0", scorers.INVALID),
    }


def test_exact_match_strips_and_nothing_else() -> None:
    assert scorers.score("exact_match", [], "yes", " yes\n") == {"exact_match": 1}
    assert scorers.score("exact_match", [], "yes", "Yes") == {"exact_match": 0}


def test_the_primary_metric_is_the_scorers_first_unless_the_recipe_names_one() -> None:
    assert scorers.primary_metric(Evaluate(scorer="json_fields", fields=FIELDS)) == "category_accuracy"
    assert scorers.primary_metric(Evaluate(scorer="exact_match")) == "exact_match"
    chosen = Evaluate(scorer="json_fields", fields=FIELDS, primary="license_macro_f1")
    assert scorers.primary_metric(chosen) == "license_macro_f1"
    with pytest.raises(RequestError, match="does not measure 'categoryaccuracy'") as caught:
        scorers.primary_metric(Evaluate(scorer="json_fields", fields=FIELDS, primary="categoryaccuracy"))
    assert "category_accuracy" in caught.value.remedy


@pytest.mark.parametrize("primary", ["macro_f1", "license_macro_f1x"])
def test_a_metric_of_another_scorer_is_refused(primary: str) -> None:
    with pytest.raises(RequestError):
        scorers.primary_metric(Evaluate(scorer="json_fields", fields=FIELDS, primary=primary))


def test_an_unknown_scorer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="jsonfields") as caught:
        scorers.score("jsonfields", FIELDS, WANTED, WANTED)
    assert caught.value.remedy == "did you mean 'json_fields'?"


def length_score(fields: Sequence[str], expected: str, answer: str) -> dict[str, float]:
    return {"length_error": float(abs(len(expected) - len(answer)))}


LENGTH = scorers.Scorer(lambda fields: ["length_error"], length_score)


def test_a_scorer_of_an_installed_package_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("length", f"{__name__}:LENGTH", "workbench.scorers")
    monkeypatch.setattr(scorers, "entry_points", lambda group: [point])
    assert scorers.score("length", [], "abc", "a") == {"length_error": 2.0}
    assert scorers.primary_metric(Evaluate(scorer="length")) == "length_error"
