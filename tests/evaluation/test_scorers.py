"""Scoring one answer: what counts as valid, what counts as right, and which names are known."""

from __future__ import annotations

import json
import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import RequestError
from workbench.evaluation import scorers
from workbench.evaluation.scorers import generation
from workbench.recipe import Evaluate

FIELDS = ["category", "license"]
WANTED = '{"category": "Copyleft", "license": "gpl-2.0"}'
JSON = Evaluate(scorer="json_fields", fields=FIELDS)
LABEL = Evaluate(scorer="label", labels=["yes", "no"])
EXTRACTION = Evaluate(scorer="extraction")
GENERATION = Evaluate(scorer="generation")


def scored(answer: str) -> dict[str, float]:
    return scorers.score(JSON, WANTED, answer)


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
    none = {"category_accuracy": 0, "license_accuracy": 0, "exact_match": 0, "field_share": 0, "validity": 0}
    assert scored(answer) == none


def test_fields_are_scored_apart_and_strings_are_stripped() -> None:
    assert scored('\n {"license": "mit", "category": " Copyleft "} ') == {
        "category_accuracy": 1,
        "license_accuracy": 0,
        "exact_match": 0,
        "field_share": 0.5,
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
    one = Evaluate(scorer="json_fields", fields=["x"])
    answer = scorers.score(one, json.dumps({"x": wanted}), json.dumps({"x": got}))
    assert answer["x_accuracy"] == answer["field_share"] == right


def test_a_wanted_answer_without_the_field_is_refused_rather_than_scored() -> None:
    other = Evaluate(scorer="json_fields", fields=["licence"])
    with pytest.raises(RequestError, match="no field 'licence'") as caught:
        scorers.score(other, WANTED, WANTED)
    assert caught.value.where == "evaluate.fields"
    with pytest.raises(RequestError, match="not a JSON object"):
        scorers.score(other, "Copyleft", WANTED)


@given(st.dictionaries(st.sampled_from(FIELDS), st.text(), min_size=2))
def test_the_wanted_answer_is_always_right_itself(fields: dict[str, str]) -> None:
    text = json.dumps(fields)
    assert set(scorers.score(JSON, text, text).values()) == {1.0}


WANTS = {
    "json_fields": (JSON, WANTED),
    "label": (LABEL, "yes"),
    "extraction": (EXTRACTION, '["Paris", {"text": "Ann", "label": "person"}]'),
    "generation": (GENERATION, "the cat sat on the mat"),
    "exact_match": (Evaluate(scorer="exact_match"), "yes"),
    "judge": (Evaluate(scorer="judge"), "yes"),
    "translation": (Evaluate(scorer="translation"), "%s löschen"),
    "tool_calls": (Evaluate(scorer="tool_calls"), '<tool_call>{"name": "look", "arguments": {"at": "x"}}</tool_call>'),
    "python": (Evaluate(scorer="python", function=f"{__name__}:near"), "yes"),
}


def near(expected: str, answer: str) -> float:
    return 1.0 / (1 + abs(len(expected) - len(answer)))


@settings(deadline=None)  # the first example loads sacrebleu
@given(st.one_of(st.text(), st.recursive(st.text() | st.integers(), st.lists, max_leaves=5).map(json.dumps)))
def test_no_text_breaks_a_scorer(answer: str) -> None:
    assert set(WANTS) == set(scorers.SCORERS)
    for evaluate, wanted in WANTS.values():
        values = scorers.score(evaluate, wanted, answer)
        assert list(values) == scorers.metric_names(evaluate)
        assert all(value >= 0 for value in values.values())
        scorers.labels(evaluate, wanted, answer)
        counts = scorers.counts(evaluate, wanted, answer)
        assert list(counts) == scorers.counted_names(evaluate)


def test_an_invalid_answer_has_a_label_that_no_wanted_answer_can_have() -> None:
    assert scorers.labels(JSON, WANTED, "Copyleft") == {
        "category_macro_f1": ("Copyleft", scorers.INVALID),
        "license_macro_f1": ("gpl-2.0", scorers.INVALID),
    }


def test_exact_match_strips_and_nothing_else() -> None:
    exact = Evaluate(scorer="exact_match")
    assert scorers.score(exact, "yes", " yes\n") == {"exact_match": 1}
    assert scorers.score(exact, "yes", "Yes") == {"exact_match": 0}


# label


@pytest.mark.parametrize(
    ("answer", "right", "valid"),
    [("yes", 1, 1), (" yes\n", 1, 1), ("no", 0, 1), ("Yes", 0, 0), ("yes.", 0, 0), ("maybe", 0, 0), ("", 0, 0)],
)
def test_an_answer_outside_the_labels_is_wrong_and_not_valid(answer: str, right: int, valid: int) -> None:
    assert scorers.score(LABEL, "yes", answer) == {"accuracy": right, "validity": valid}
    answered = answer.strip() if valid else scorers.INVALID
    assert scorers.labels(LABEL, "yes", answer) == {"macro_f1": ("yes", answered)}


def test_the_labels_of_the_wanted_answers_close_the_set_where_the_recipe_names_none() -> None:
    open_set = Evaluate(scorer="label")
    assert scorers.score(open_set, "да", "perhaps")["validity"] == 1
    closed = scorers.closed(open_set, ["да", "нет ", "да"])
    assert closed.labels == ["да", "нет"]
    assert scorers.score(closed, "да", "perhaps") == {"accuracy": 0, "validity": 0}
    assert scorers.score(closed, "нет", "нет") == {"accuracy": 1, "validity": 1}
    assert scorers.closed(LABEL, ["maybe"]) is LABEL, "a list of the recipe's own stays"
    assert scorers.closed(JSON, ["maybe"]) is JSON


@pytest.mark.parametrize("wanted", ["maybe", ""])
def test_a_wanted_answer_that_is_no_label_is_refused(wanted: str) -> None:
    with pytest.raises(RequestError) as caught:
        scorers.score(LABEL, wanted, "yes")
    assert caught.value.where == "evaluate.labels"


# extraction


@pytest.mark.parametrize(
    ("wanted", "answer", "f1", "exact", "counts"),
    [
        (["a", "b"], ["b", "a"], 1, 1, (2, 2, 2)),
        (["a", "b"], ["a"], 2 / 3, 0, (1, 2, 1)),
        (["a", "b"], ["a", "c", "d"], 0.4, 0, (1, 2, 3)),
        (["a"], [" a ", "a"], 1, 1, (1, 1, 1)),
        (["a"], ["A"], 0, 0, (0, 1, 1)),
        ([], [], 1, 1, (0, 0, 0)),
        ([], ["a"], 0, 0, (0, 0, 1)),
        (["a"], [], 0, 0, (0, 1, 0)),
        (["a"], [{"text": "a"}], 1, 1, (1, 1, 1)),
        ([{"text": "Ann", "label": "person"}], [{"text": "Ann", "label": "place"}], 0, 0, (0, 1, 1)),
        ([{"text": "Ann", "label": "person"}], ["Ann"], 0, 0, (0, 1, 1)),
        (["Zürich", "北京", "😀"], ["北京", "Zürich", "😀"], 1, 1, (3, 3, 3)),
        ([{"start": 0, "end": 3, "label": "x"}], [{"start": 0, "end": 3, "label": "x", "text": "?"}], 1, 1, (1, 1, 1)),
        ([{"start": 0, "end": 3, "text": "Ann"}], [{"start": 0, "end": 4, "text": "Ann"}], 0, 0, (0, 1, 1)),
        ([{"start": 0, "end": 3, "text": "Ann"}], [{"text": "Ann"}], 0, 0, (0, 1, 1)),
        ([{"text": "Ann"}], [{"start": 7, "end": 9, "text": "Ann"}], 1, 1, (1, 1, 1)),
    ],
)
def test_items_are_a_set_and_spans_are_equal_by_their_ends(
    wanted: list[object], answer: list[object], f1: float, exact: int, counts: tuple[float, ...]
) -> None:
    texts = json.dumps(wanted, ensure_ascii=False), json.dumps(answer)
    assert scorers.score(EXTRACTION, *texts) == {
        "item_f1": pytest.approx(f1), "exact_match": exact, "validity": 1
    }  # fmt: skip
    assert scorers.counts(EXTRACTION, *texts) == {"micro_f1": counts}


@pytest.mark.parametrize(
    "answer", ["", "Paris", '{"text": "Paris"}', '["Paris"', "[3]", "[null]", '[{"label": "x"}]', '[["Paris"]]',
               '[{"text": "Paris", "label": 3}]', '["Paris"] and more', '```json\n["Paris"]\n```'],
)  # fmt: skip
def test_an_answer_that_is_no_list_of_items_is_invalid_and_counts_as_one_wrong_item(answer: str) -> None:
    assert scorers.score(EXTRACTION, '["Paris"]', answer) == {"item_f1": 0, "exact_match": 0, "validity": 0}
    assert scorers.counts(EXTRACTION, '["Paris"]', answer) == {"micro_f1": (0, 1, 1)}
    assert scorers.score(EXTRACTION, "[]", answer)["exact_match"] == 0, "not even where nothing is wanted"


def test_a_wanted_answer_that_is_no_list_is_refused() -> None:
    with pytest.raises(RequestError, match="no JSON list"):
        scorers.score(EXTRACTION, "Paris", "[]")


# generation


def test_generation_gives_what_sacrebleu_and_rouge_score_give() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_chrf

    wanted, answer = "The Cat sat on the mat, at 9 o'clock.", "a cat sat upon a mat (at 9)"
    found = scorers.score(GENERATION, wanted, answer)
    assert found["chrf"] == pytest.approx(sentence_chrf(answer, [wanted]).score / 100)
    assert found["rouge_l"] == pytest.approx(RougeScorer(["rougeL"]).score(wanted, answer)["rougeL"].fmeasure)
    assert found["length_ratio"] == pytest.approx(len(answer) / len(wanted))
    assert found["exact_match"] == 0
    assert scorers.primary_metric(GENERATION) == "chrf"


@settings(deadline=None)
@given(*[st.lists(st.sampled_from(["a", "b", "c", "d", "e", "the", "1", "2"]), min_size=1, max_size=70)] * 2)
def test_rouge_l_is_rouge_score_s_for_texts_of_any_length(wanted: list[str], answer: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rougeL"]).score(" ".join(wanted), " ".join(answer))["rougeL"].fmeasure
    assert generation.rouge_l(wanted, answer) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("text", ["yes", "Ja, natürlich.", "我喜欢猫。", "हिन्दी है", "?!", "😀", " spaced "])
def test_an_equal_text_gets_full_marks_in_every_script(text: str) -> None:
    full = {"chrf": 1, "rouge_l": 1, "exact_match": 1, "length_ratio": 1}
    assert scorers.score(GENERATION, text, f"\n{text}") == full


@pytest.mark.parametrize(
    ("wanted", "answer", "rouge_l"),
    [("Привет мир", "привет", 2 / 3), ("我喜欢猫", "我喜欢狗", 0.75), ("हिन्दी है", "हिन्दी", 2 / 3), ("!!", "??", 0)],
)
def test_words_of_other_scripts_count_too(wanted: str, answer: str, rouge_l: float) -> None:
    assert scorers.score(GENERATION, wanted, answer)["rouge_l"] == pytest.approx(rouge_l)


def test_an_empty_answer_has_nothing_in_common_with_a_text() -> None:
    assert scorers.score(GENERATION, "text", " ") == {"chrf": 0, "rouge_l": 0, "exact_match": 0, "length_ratio": 0}
    assert scorers.score(GENERATION, "", "text")["exact_match"] == 0
    assert scorers.score(GENERATION, "", "") == {"chrf": 1, "rouge_l": 1, "exact_match": 1, "length_ratio": 1}


# python


def own(folder: Path, text: str, name: str = "mine") -> Evaluate:
    path = folder / "scoring.py"
    changed = path.stat().st_mtime_ns + 1_000_000 if path.exists() else None
    path.write_text(text)
    if changed:  # a file system may keep whole ticks only
        os.utime(path, ns=(changed, changed))
    return Evaluate(scorer="python", function=f"{path}:{name}")


def test_a_users_function_scores_and_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    evaluate = own(tmp_path, "def mine(expected, answer):\n    return answer in expected\n")
    assert scorers.metric_names(evaluate) == ["score"]
    assert scorers.score(evaluate, "Grüße", "rüß") == {"score": 1.0}
    before = scorers.version(evaluate)
    own(tmp_path, "def mine(expected, answer):\n    return 0.25\n")
    assert scorers.score(evaluate, "Grüße", "rüß") == {"score": 0.25}
    assert scorers.version(evaluate) != before, "so that an evaluation is not taken for done"
    assert scorers.version(JSON) == ""


def test_a_users_function_names_its_metrics_the_deciding_one_first(tmp_path: Path) -> None:
    text = "def mine(expected, answer):\n    return {'polite': 1, 'close': 0.5}\nmine.metrics = ['close', 'polite']\n"
    evaluate = own(tmp_path, text)
    assert scorers.primary_metric(evaluate) == "close"
    assert scorers.score(evaluate, "a", "b") == {"close": 0.5, "polite": 1.0}


def test_a_function_of_a_module_is_found_too() -> None:
    assert scorers.score(WANTS["python"][0], "abc", "a") == {"score": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def mine(expected, answer):\n    return 'good'\n", "no finite number, for the answer 'two' where 'one'"),
        ("def mine(expected, answer):\n    return float('nan')\n", "no finite number"),
        ("def mine(expected, answer):\n    return None\n", "no finite number"),
        ("def mine(expected, answer):\n    return {'close': 1}\n", "it gave close and it has no `metrics`"),
        ("def mine(expected, answer):\n    return {}\nmine.metrics = ['a']\n", "it gave nothing and its `metrics`"),
        ("def mine(expected, answer):\n    return 1\nmine.metrics = ['a', 'b']\n", "it measures a, b and gave 1"),
        ("def mine(expected, answer):\n    return 1\nmine.metrics = 'a'\n", "its `metrics` are 'a'"),
        ("def mine(expected, answer):\n    return 1\nmine.metrics = []\n", "its `metrics` are []"),
        (
            "def mine(expected, answer):\n    return 1 / 0\n",
            r"ZeroDivisionError: division by zero (line 2 of scoring.py",
        ),
        ("def mine(expected):\n    return 1\n", "TypeError"),
        ("mine = 3\n", "is no function"),
        ("def other(expected, answer):\n    return 1\n", "has no mine"),
        ("import nowhere_at_all\n", "cannot be loaded: ModuleNotFoundError"),
        ("def mine(:\n", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_wrong_function_is_refused_naming_the_key_and_the_row(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        scorers.score(own(tmp_path, text), "one", "two")
    assert told in caught.value.what
    assert caught.value.where == "evaluate.function"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (None, "needs a function"),
        ("scoring.py", "names no function"),
        ("scoring.py:", "names no function"),
        ("scoring.py:a b", "names no function"),
        ("nowhere/scoring.py:mine", "there is no file"),
        ("no_such_package.module:mine", "cannot be imported"),
        ("json:no_such_name", "json has no no_such_name"),
    ],
)
def test_a_function_that_is_not_there_is_refused(function: str | None, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        scorers.score(Evaluate(scorer="python", function=function), "one", "two")
    assert caught.value.where == "evaluate.function"


# names


def test_the_primary_metric_is_the_scorers_first_unless_the_recipe_names_one() -> None:
    firsts = {name: scorers.primary_metric(evaluate) for name, (evaluate, _) in WANTS.items()}
    assert firsts == {
        "json_fields": "category_accuracy", "label": "accuracy", "extraction": "item_f1", "generation": "chrf",
        "exact_match": "exact_match", "judge": "preference", "python": "score", "translation": "valid_chrf",
        "tool_calls": "exact_match",
    }  # fmt: skip
    chosen = Evaluate(scorer="json_fields", fields=FIELDS, primary="license_macro_f1")
    assert scorers.primary_metric(chosen) == "license_macro_f1"
    assert scorers.primary_metric(Evaluate(scorer="extraction", primary="micro_f1")) == "micro_f1"
    with pytest.raises(RequestError, match="does not measure 'categoryaccuracy'") as caught:
        scorers.primary_metric(Evaluate(scorer="json_fields", fields=FIELDS, primary="categoryaccuracy"))
    assert "category_accuracy" in caught.value.remedy


@pytest.mark.parametrize("primary", ["macro_f1", "license_macro_f1x"])
def test_a_metric_of_another_scorer_is_refused(primary: str) -> None:
    with pytest.raises(RequestError):
        scorers.primary_metric(Evaluate(scorer="json_fields", fields=FIELDS, primary=primary))


def test_one_answers_deciding_score_is_the_first_metric_where_the_primary_is_no_single_answers() -> None:
    assert scorers.deciding_score(Evaluate(scorer="extraction", primary="micro_f1"), '["a"]', '["a", "b"]') < 1
    assert scorers.deciding_score(Evaluate(scorer="judge"), "yes", "yes") == 1
    assert scorers.deciding_score(Evaluate(scorer="label", primary="validity", labels=["a", "b"]), "a", "b") == 1


def test_a_bundle_is_scored_without_the_judge_and_without_the_users_code() -> None:
    for evaluate in (Evaluate(scorer="python", function="mine.py:f", primary="score"), Evaluate(scorer="judge")):
        plain, why = scorers.portable(evaluate)
        assert (plain.scorer, plain.primary, plain.function) == ("exact_match", None, None)
        assert "does not travel" in why
    assert scorers.portable(JSON) == (JSON, "")


def test_whoever_verifies_a_bundle_runs_no_function_that_its_manifest_names() -> None:
    from workbench.views.verify import evaluate_of

    told = {"scorer": "python", "fields": [], "labels": [], "primary": "score", "function": "shutil:rmtree"}
    found = evaluate_of({"scoring": told})
    assert (found.scorer, found.function) == ("exact_match", None)
    told = {"scorer": "label", "fields": [], "labels": ["a", "b"], "primary": "validity"}
    found = evaluate_of({"scoring": told})
    assert scorers.deciding_score(found, "a", "c") == 0
    assert evaluate_of({}).scorer == "exact_match"


def test_an_unknown_scorer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="jsonfields") as caught:
        scorers.score(Evaluate(scorer="jsonfields"), WANTED, WANTED)
    assert caught.value.remedy == "did you mean 'json_fields'?"


def length_score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    return {"length_error": float(abs(len(expected) - len(answer)))}


LENGTH = scorers.Scorer(lambda evaluate: ["length_error"], length_score)


def test_a_scorer_of_an_installed_package_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("length", f"{__name__}:LENGTH", "workbench.scorers")
    monkeypatch.setattr(scorers, "entry_points", lambda group: [point])
    assert scorers.score(Evaluate(scorer="length"), "abc", "a") == {"length_error": 2.0}
    assert scorers.primary_metric(Evaluate(scorer="length")) == "length_error"
    assert scorers.counts(Evaluate(scorer="length"), "abc", "a") == {}
