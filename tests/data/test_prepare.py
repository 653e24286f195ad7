"""The recipe's rows: what is read, split, dropped and said, and what is refused."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.data.prepare import Splits, prepare
from workbench.errors import RequestError
from workbench.recipe import Columns, Data

COLUMNS = Columns(prompt="text", answer="answer")
VOCABULARY = [f"w{i}" for i in range(5_000)]


def texts(count: int, seed: int = 0, words: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=words)) for _ in range(count)]


def file_of(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, dict) else {"text": row, "answer": "A"} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def rows_of(splits: Splits) -> list[list[str]]:
    return [[e.id for e in part] for part in (splits.train, splits.validation, splits.test)]


def test_three_files_are_read_as_they_are_and_described(tmp_path: Path) -> None:
    parts = {name: file_of(tmp_path / f"{name}.jsonl", texts(20, i)) for i, name in enumerate(["train", "val", "test"])}
    data = Data(name="mine", train=parts["train"], validation=parts["val"], test=parts["test"], columns=COLUMNS)
    splits = prepare(data, 1)
    assert [len(part) for part in rows_of(splits)] == [20, 20, 20]
    assert splits.notes[0] == "train: 20 rows as columns from train.jsonl"
    assert [(d["name"], d["role"], d["rows"], d["source"]) for d in splits.datasets] == [
        ("mine", "training", 20, parts["train"]),
        ("mine", "validation", 20, parts["val"]),
        ("mine", "test", 20, parts["test"]),
    ]
    assert len({d["digest"] for d in splits.datasets}) == 3
    assert all(len(d["digest"]) == 32 for d in splits.datasets)
    assert prepare(data, 2).datasets == splits.datasets


def test_one_csv_of_fifty_rows_is_split_in_three(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("Frage;Antwort\n" + "".join(f"{text};yes\n" for text in texts(50)))
    data = Data(train=str(path), columns=Columns(prompt="Frage", answer="Antwort"))
    splits = prepare(data, 3)
    assert [len(part) for part in rows_of(splits)] == [35, 5, 10]
    assert any("35 train, 5 validation, 10 test" in line for line in splits.notes)
    assert rows_of(prepare(data, 3)) == rows_of(splits)
    assert rows_of(prepare(data, 4)) != rows_of(splits)


def test_only_what_is_not_given_is_split_off(tmp_path: Path) -> None:
    train, test = file_of(tmp_path / "train.jsonl", texts(40)), file_of(tmp_path / "test.jsonl", texts(7, 1))
    splits = prepare(Data(train=train, test=test, columns=COLUMNS), 0)
    assert [len(part) for part in rows_of(splits)] == [36, 4, 7]


def test_repeats_and_overlaps_are_dropped_aloud(tmp_path: Path) -> None:
    rows, val, test = texts(30), texts(5, 1), texts(5, 2)
    shared = " ".join(test[0].split()[:13])
    train = [*rows, rows[0], val[0], f"{shared} {texts(1, 3)[0]}", {"text": rows[1], "answer": "B"}]
    data = Data(
        train=file_of(tmp_path / "train.jsonl", train),
        validation=file_of(tmp_path / "val.jsonl", [*val, test[1]]),
        test=file_of(tmp_path / "test.jsonl", test),
        columns=COLUMNS,
        instruction=" ".join(VOCABULARY[:40]),
    )
    splits = prepare(data, 0)
    assert [len(part) for part in rows_of(splits)] == [31, 5, 5]
    said = "\n".join(splits.notes)
    assert "dropped 1 training rows that repeat another one" in said
    assert "dropped 1 of 6 validation rows that repeat test" in said
    assert "the first: train.jsonl:33 with test.jsonl:1" in said
    assert "the first: train.jsonl:32 with val.jsonl:1" in said
    assert "1 training rows give a prompt a second, different answer" in said


def test_a_task_description_in_every_row_is_no_overlap_and_no_near_copy(tmp_path: Path) -> None:
    task = " ".join(VOCABULARY[:60])
    rows = [f"{task}\n\n{text}\n\nAnswer with yes or no only:" for text in texts(50, words=15)]
    splits = prepare(Data(train=file_of(tmp_path / "r.jsonl", rows), columns=COLUMNS), 0)
    assert [len(part) for part in rows_of(splits)] == [35, 5, 10]
    assert any("begins with the same 60 words" in line for line in splits.notes)
    assert splits.train[0].messages[0].content.startswith(task)


def test_training_rows_that_are_all_test_rows_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = file_of(tmp_path / "r.jsonl", texts(20))
    with pytest.raises(RequestError, match="all 20 training rows repeat test rows") as caught:
        prepare(Data(train=path, test=path, validation=file_of(tmp_path / "v.jsonl", texts(3, 1)), columns=COLUMNS), 0)
    assert "data.instruction" in caught.value.remedy


def test_limit_draws_by_the_seed_and_a_smaller_one_is_part_of_a_larger(tmp_path: Path) -> None:
    files = {n: file_of(tmp_path / f"{n}.jsonl", texts(40, i)) for i, n in enumerate(["train", "validation", "test"])}

    def drawn(limit: int, seed: int) -> set[str]:
        return {e.id for e in prepare(Data(**files, columns=COLUMNS, limit=limit), seed).train}

    assert len(drawn(10, 0)) == 10
    assert drawn(5, 0) < drawn(10, 0)
    assert drawn(10, 0) != drawn(10, 1)


def test_too_many_bad_rows_are_refused_with_reasons_and_few_are_kept_aside(tmp_path: Path) -> None:
    bad = [{"text": text, "answer": ""} for text in texts(4, 9)]
    data = Data(train=file_of(tmp_path / "r.jsonl", [*texts(96), *bad]), columns=COLUMNS)
    with pytest.raises(RequestError) as caught:
        prepare(data, 0)
    message = str(caught.value)
    assert "4 of 100 rows (4.0%)" in message
    assert "r.jsonl:97: answer (answer) is empty" in message
    assert "r.jsonl:99" in message
    assert "r.jsonl:100" not in message
    assert "quarantine.jsonl" in message
    data.max_bad_share = 0.04
    splits = prepare(data, 0)
    assert [b.where for b in splits.bad] == [f"r.jsonl:{n}" for n in (97, 98, 99, 100)]
    assert sum(len(part) for part in rows_of(splits)) == 96


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(RequestError):
        prepare(Data(train=str(tmp_path / "r.jsonl")), 0)


def test_four_thousand_rows_take_under_three_seconds(tmp_path: Path) -> None:
    path = file_of(tmp_path / "r.jsonl", texts(4_000, words=60))
    began = time.process_time()
    prepare(Data(train=path, columns=COLUMNS), 0)
    assert time.process_time() - began < 3
