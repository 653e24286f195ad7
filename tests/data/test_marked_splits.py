"""Rows that name their own split keep it: what is marked as test is never learned, and judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.data import load as loading
from workbench.data.load import load
from workbench.data.prepare import judges_by_given, prepare, refuse_folds
from workbench.errors import RequestError
from workbench.recipe import Columns, Data

MARKED = {"train": 30, "dev": 5, "Test": 10}


def rows(marks: dict[str, int], column: str = "split") -> list[dict[str, Any]]:
    made = [
        {"id": f"{mark}{n}", "prompt": " ".join(f"{mark}{n}w{k * n % 97}" for k in range(1, 9)), "completion": "yes"}
        | {column: mark}
        for mark, count in marks.items() for n in range(count)
    ]  # fmt: skip
    return sorted(made, key=lambda row: row["id"][::-1])  # mixed through one another


def written(path: Path, made: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def beginnings(splits: Any) -> list[set[str]]:
    return [{e.id.rstrip("0123456789") for e in part} for part in (splits.train, splits.validation, splits.test)]


@pytest.mark.parametrize("column", ["split", "Split", "data_split", "partition"])
def test_rows_that_name_their_split_keep_it_aloud(column: str, tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", rows(MARKED, column))
    splits = prepare(Data(train=source), 1)
    assert beginnings(splits) == [{"train"}, {"dev"}, {"Test"}]
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [30, 5, 10]
    assert f"test: the split of {source} (data.test names no other)" in splits.notes
    assert (
        f"train: not among the train rows, by the column {column!r} of r.jsonl: 10 test, 5 validation rows"
        in splits.notes
    )
    assert not [line for line in splits.notes if "not used" in line]
    assert [(d["role"], d["rows"]) for d in splits.datasets] == [("training", 30), ("validation", 5), ("test", 10)]


def test_a_part_that_no_row_is_marked_as_is_split_off_the_training_rows_alone(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", rows({"train": 30, "test": 10}))
    assert beginnings(prepare(Data(train=source), 1)) == [{"train"}, {"train"}, {"test"}]
    # What the recipe names goes before; the marked rows are then nobody's.
    gold = written(tmp_path / "gold.jsonl", rows({"gold": 8}, "note"))
    splits = prepare(Data(train=source, test=gold), 1)
    assert beginnings(splits) == [{"train"}, {"train"}, {"gold"}]
    assert any("10 test rows" in line for line in splits.notes)


def test_any_column_can_be_named_and_none_reads_all_rows_alike(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", rows(MARKED, "use"))
    splits = prepare(Data(train=source, columns=Columns(split="use")), 1)
    assert beginnings(splits) == [{"train"}, {"dev"}, {"Test"}]
    plain = prepare(Data(train=source), 1)
    assert "train: not used of r.jsonl: use" in plain.notes
    every = written(tmp_path / "s.jsonl", rows(MARKED))
    assert len(load(Path(every), Data(columns=Columns(split="none"))).examples) == 45
    assert "not used of s.jsonl: split" in load(Path(every), Data(columns=Columns(split="none"))).notes
    with pytest.raises(RequestError, match="no column 'used'") as caught:
        prepare(Data(train=source, columns=Columns(split="used")), 1)
    assert caught.value.where == "data.columns.split"
    assert "use" in caught.value.remedy


@pytest.mark.parametrize("word", ["treino", "", None, 1])
def test_a_value_that_names_no_split_is_refused_with_its_row(word: Any, tmp_path: Path) -> None:
    made = rows(MARKED)
    made[7]["split"] = word
    source = written(tmp_path / "r.jsonl", made)
    with pytest.raises(RequestError, match="names no split") as caught:
        prepare(Data(train=source), 1)
    assert caught.value.where == "r.jsonl:8"
    assert "data.columns.split=none" in caught.value.remedy


def test_a_column_of_other_words_is_no_split(tmp_path: Path) -> None:
    made = [row | {"split": "en-de", "subset": 3} for row in rows({"a": 30})]
    splits = prepare(Data(train=written(tmp_path / "r.jsonl", made)), 1)
    assert "train: not used of r.jsonl: split, subset" in splits.notes


def test_a_mark_that_comes_late_is_not_passed_over(tmp_path: Path) -> None:
    late = [*rows({"a": 70}, "note"), *rows({"test": 3})]
    source = written(tmp_path / "r.jsonl", late)
    with pytest.raises(RequestError, match="among the train rows") as caught:
        prepare(Data(train=source), 1)
    assert caught.value.where == "r.jsonl:71"
    assert "data.columns.split=split" in caught.value.remedy


def test_rows_that_are_all_marked_otherwise_are_not_learned_but_judge_where_they_are_named(tmp_path: Path) -> None:
    source = written(tmp_path / "gold.jsonl", rows({"dev": 20}))
    with pytest.raises(RequestError, match="no row is marked train"):
        prepare(Data(train=source), 1)
    loaded = load(Path(source), Data(), part="test")
    assert len(loaded.examples) == 20
    assert any("the recipe names them as test rows" in line for line in loaded.notes)
    both = written(tmp_path / "both.jsonl", rows({"train": 20, "dev": 20}))
    with pytest.raises(RequestError, match="no row is marked test"):
        load(Path(both), Data(), part="test")


def test_shards_of_a_folder_bring_the_splits_that_their_rows_name(tmp_path: Path) -> None:
    made = rows(MARKED)
    for number in range(3):
        written(tmp_path / "set" / f"part-{number}.jsonl", made[number::3])
    for source in (f"dir:{tmp_path / 'set'}", f"file:{tmp_path / 'set'}/part-*.jsonl"):
        splits = prepare(Data(train=source), 1)
        assert beginnings(splits) == [{"train"}, {"dev"}, {"Test"}]
        assert len(splits.test) == 10


def test_more_rows_than_are_held_keep_their_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "HELD", 8)
    monkeypatch.setattr(loading, "SHARD", 5)
    splits = prepare(Data(train=written(tmp_path / "r.jsonl", rows(MARKED))), 1, work=tmp_path / "work")
    assert beginnings(splits) == [{"train"}, {"dev"}, {"Test"}]


def test_lists_of_one_json_file_are_splits_as_files_of_a_folder_are(tmp_path: Path) -> None:
    lists = {"training": rows({"train": 30}, "x"), "testing": rows({"test": 10}, "x"), "version": 2}
    (tmp_path / "r.json").write_text(json.dumps(lists, indent=1))
    splits = prepare(Data(train=str(tmp_path / "r.json")), 1)
    assert beginnings(splits) == [{"train"}, {"train"}, {"test"}]
    (tmp_path / "set").mkdir()
    for part in ("training", "testing"):
        written(tmp_path / "set" / f"{part}.jsonl", lists[part])  # type: ignore[arg-type]
    assert beginnings(prepare(Data(train=f"dir:{tmp_path / 'set'}"), 1)) == [{"train"}, {"train"}, {"test"}]


def test_a_training_row_that_repeats_a_marked_test_row_goes(tmp_path: Path) -> None:
    made = rows({"train": 30, "test": 10})
    leak = next(row for row in made if row["split"] == "test")
    source = written(tmp_path / "r.jsonl", [*made, leak | {"id": "leak", "split": "train"}])
    splits = prepare(Data(train=source), 1)
    assert "leak" not in {e.id for e in (*splits.train, *splits.validation)}
    assert any("repeat test" in line for line in splits.notes)


def test_given_test_rows_are_nobody_s_fold(tmp_path: Path) -> None:
    data = Data(train=written(tmp_path / "r.jsonl", rows({"train": 30, "test": 10})))
    splits = prepare(data, 1)
    assert judges_by_given(data, splits)
    with pytest.raises(RequestError, match="cannot judge here"):
        refuse_folds(data, splits)
    plain = Data(train=written(tmp_path / "s.jsonl", rows({"a": 30}, "note")))
    refuse_folds(plain, prepare(plain, 1))


def flagged(marks: dict[str, int], **columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `marks`, each with the columns' values for its mark."""
    return [
        {name: value for name, value in row.items() if name != "mark"}
        | {column: values[row["mark"]] for column, values in columns.items() if row["mark"] in values}
        for row in rows(marks, "mark")
    ]


YES_OR_NO = {
    "one column": {"is_test": {"train": False, "dev": False, "Test": True}},
    "as a CSV writes it": {"isTest": {"train": "False", "dev": "0", "Test": "True"}},
    "the bare word": {"test": {"train": False, "dev": False, "Test": True}},
    "train alone: what is not is held out": {"is_train": {"train": 1, "dev": 1, "Test": 0}},
    "two, the third is the rest": {"is_train": {"train": True, "dev": False, "Test": False},
                                   "is_validation": {"train": False, "dev": True, "Test": False}},
    "three": {"is_train": {"train": True, "dev": False, "Test": False},
              "is_valid": {"train": False, "dev": True, "Test": False},
              "is_test": {"train": False, "dev": False, "Test": True}},
}  # fmt: skip


@pytest.mark.parametrize("form", YES_OR_NO)
def test_columns_of_true_and_false_mark_the_split_aloud(form: str, tmp_path: Path) -> None:
    columns = YES_OR_NO[form]
    source = written(tmp_path / "r.jsonl", flagged(MARKED, **columns))
    splits = prepare(Data(train=source), 1)
    assert {e.id.rstrip("0123456789") for e in splits.test} == {"Test"}
    assert len(splits.test) == 10
    assert len(splits.train) + len(splits.validation) == 35
    if len(columns) > 1:
        assert beginnings(splits) == [{"train"}, {"dev"}, {"Test"}]
    [line] = [line for line in splits.notes if "not among the train rows, by the column" in line]
    assert all(repr(column) in line for column in columns)
    assert not [line for line in splits.notes if "not used" in line]
    assert not {*columns} & {*splits.test[0].meta}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"is_test": {"train": False, "Test": None}}, "'is_test' is None there"),
        ({"is_test": {"train": False}}, "'is_test' is None there"),
        ({"is_test": {"train": False, "Test": True}, "is_train": {"train": True, "Test": True}},
         "'is_test' is True and 'is_train' is True there"),
    ],
)  # fmt: skip
def test_rows_that_are_marked_as_nothing_or_as_two_things_are_refused(
    columns: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "r.jsonl", flagged({"train": 30, "Test": 10}, **columns))
    with pytest.raises(RequestError, match="in 10 rows it names no split") as caught:
        prepare(Data(train=source), 1)
    assert words in caught.value.what
    assert caught.value.where.startswith("r.jsonl:")
    assert "true or false" in caught.value.remedy
    assert "data.columns.split=none" in caught.value.remedy


def test_a_column_of_true_and_false_that_says_something_else_marks_nothing(tmp_path: Path) -> None:
    half = {"train": True, "Test": False}
    for columns in ({"is_valid": half}, {"val": half}, {"test": {"train": 1, "Test": 7}}, {"tested": half}):
        source = written(tmp_path / "r.jsonl", flagged({"train": 30, "Test": 10}, **columns))
        splits = prepare(Data(train=source), 1)
        assert f"train: not used of r.jsonl: {next(iter(columns))}" in splits.notes
    # A column that the recipe has another use for is that and no mark.
    source = written(tmp_path / "r.jsonl", flagged({"train": 30, "Test": 10}, test=half))
    data = Data(columns=Columns(prompt="prompt", answer="test"))
    assert len(load(Path(source), data).examples) == 40
    # Whatever it is called, the recipe can name it; of several it can name one.
    source = written(tmp_path / "r.jsonl", flagged(MARKED, use_for_test=YES_OR_NO["one column"]["is_test"],
                                                   is_train=YES_OR_NO["three"]["is_train"]))  # fmt: skip
    splits = prepare(Data(train=source, columns=Columns(split="use_for_test")), 1)
    assert len(splits.test) == 10
    assert "train: not used of r.jsonl: is_train" in splits.notes


def test_a_true_that_comes_late_is_not_passed_over(tmp_path: Path) -> None:
    late = [*rows({"a": 70}, "note"), *flagged({"Test": 3}, is_test={"Test": True})]
    with pytest.raises(RequestError, match="'is_test' is True, and the first 64 rows are not marked") as caught:
        prepare(Data(train=written(tmp_path / "r.jsonl", late)), 1)
    assert caught.value.where == "r.jsonl:71"
