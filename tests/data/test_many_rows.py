"""Rows that are too many to hold are prepared as few are: the same rows, notes and digests, shard by shard."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from workbench.data import load as loading
from workbench.data import mixture, near_copies
from workbench.data.prepare import Splits, gather, prepare
from workbench.errors import RequestError
from workbench.recipe import Columns, Data
from workbench.stored_rows import StoredRows

COLOURS = ("red", "blue", "green", "black", "white")


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 50 rows are not held, and a shard has 40."""
    for room in (loading, mixture):
        monkeypatch.setattr(room, "HELD", 50)
    monkeypatch.setattr(loading, "SHARD", 40)


def row_of(number: int, draw: random.Random) -> dict[str, object]:
    text = "Dear all, tell me " + " ".join(f"w{draw.randrange(400)}" for _ in range(draw.randint(5, 25)))
    row: dict[str, object] = {"prompt": text, "completion": COLOURS[number % 5], "group": f"g{number // 3}"}
    if number % 7 == 0:
        row["id"] = f"i{number % 30}"  # repeats
    if number % 11 == 0:
        row |= {"weight": 0.5, "note": "n"}
    return row


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """150 rows: groups, near copies, repeats, weights, ids that are taken, an unused column and a broken line."""
    monkeypatch.chdir(tmp_path)
    draw, made = random.Random(3), []
    for number in range(150):
        made.append(row_of(number, draw))
        if number % 10 == 5:
            copy = dict(made[number // 2])
            copy["prompt"] = f"{copy['prompt']} again" if number % 20 == 5 else copy["prompt"]
            made[-1] = copy
    lines = [json.dumps(row) for row in made]
    lines[60] = '{"prompt": "broken'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "rows.jsonl"


def prepared(path: Path, work: Path | None = None, **more: object) -> Splits:
    data = Data(train=str(path), max_bad_share=0.1, columns=Columns(group="group"), overlap_words=4, **more)  # type: ignore[arg-type]
    return prepare(data, 17, work=work)


def whole(splits: Splits) -> list[object]:
    parts = [list(part) for part in (splits.train, splits.validation, splits.test)]
    return [*parts, splits.bad, splits.notes, splits.datasets]


@pytest.mark.parametrize("limit", [None, 30])
def test_many_rows_are_prepared_as_few_are(rows: Path, limit: int | None, request: pytest.FixtureRequest) -> None:
    few = prepared(rows, limit=limit)
    request.getfixturevalue("few_are_many")
    many = prepared(rows, limit=limit)
    assert isinstance(few.train, list)
    assert isinstance(many.train, StoredRows)
    assert whole(many) == whole(few)
    assert len(few.bad) == 1
    assert len(few.notes) > 6
    assert many.train[-1] == few.train[-1]
    assert list(many.train[2:5]) == few.train[2:5]


def test_many_prompts_and_many_sources_are_gathered_as_few_are(rows: Path, request: pytest.FixtureRequest) -> None:
    second = rows.with_name("more.jsonl")
    second.write_text("".join(json.dumps({"prompt": f"What is x{n} y{n * n} z{n * 7}?"}) + "\n" for n in range(90)))
    data = Data(train=[str(rows), {"from": str(second)}], test=str(rows.with_name("gold.jsonl")), max_bad_share=0.1)
    rows.with_name("gold.jsonl").write_text(json.dumps({"prompt": "Which colour?", "completion": "red"}) + "\n")
    few = gather(data, None, 100, 17)
    request.getfixturevalue("few_are_many")
    many = gather(data, None, 100, 17)
    assert isinstance(many.examples, StoredRows)
    assert (list(many.examples), many.notes, many.datasets, many.judging) == (
        list(few.examples), few.notes, few.datasets, few.judging,
    )  # fmt: skip
    assert whole(many.splits) == whole(few.splits)


def test_a_column_that_is_not_there_is_refused_in_many_rows_as_in_few(rows: Path, few_are_many: None) -> None:
    with pytest.raises(RequestError, match="no column 'grup'"):
        prepare(Data(train=str(rows), columns=Columns(group="grup")), 17)


def test_what_was_read_before_a_kill_is_not_made_again(
    rows: Path, tmp_path: Path, few_are_many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = whole(prepared(rows))
    made: list[str] = []
    real = loading.Shard.example

    def counted(shard: loading.Shard, raw: loading.Raw, *rest: object) -> object:
        made.append(raw.where)
        if len(made) == 100:
            raise KeyboardInterrupt  # within the third shard of 40
        return real(shard, raw, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loading.Shard, "example", counted)
    with pytest.raises(KeyboardInterrupt):
        prepared(rows, tmp_path / "work")
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("rows-*.json")}
    assert len(first) == 2
    made.clear()
    assert whole(prepared(rows, tmp_path / "work")) == undisturbed
    assert made[0] == "rows.jsonl:81"
    assert len(made) == 70
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_a_shard_that_was_damaged_or_made_for_another_section_is_made_again(
    rows: Path, tmp_path: Path, few_are_many: None
) -> None:
    work = tmp_path / "work"
    undisturbed = whole(prepared(rows, work))
    with next(work.rglob("rows-00001.jsonl")).open("a") as stream:
        stream.write("{}\n")
    assert whole(prepared(rows, work)) == undisturbed
    other = prepared(rows, work, instruction="Answer in a word.")
    assert all(row.messages[0].content.startswith("Answer in a word.") for row in other.train)


def test_near_copies_of_many_texts_are_bounded_and_still_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    template = [f"t{i}" for i in range(12)]
    texts = [" ".join([*template, *(f"w{draw.randrange(10**6)}" for _ in range(k % 5))]) for k in range(300)]
    texts += [" ".join(f"u{draw.randrange(10**6)}" for _ in range(12)) for _ in range(100)]
    exact = near_copies.near_copies(texts)
    monkeypatch.setattr(near_copies, "MANY", 10)
    monkeypatch.setattr(near_copies, "WIDE", 5)
    monkeypatch.setattr(near_copies, "CHUNK", 64)
    assert near_copies.near_copies(texts) == exact
    assert len(set(exact)) == 101
