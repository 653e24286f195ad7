"""Sources are read together: patterns and lists with all their rows, mixtures with the part that each weight says."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from workbench.data.prepare import Splits, prepare
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Data, row_sources, source_text
from workbench.sources import content_digests, is_missing, resolve_all

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty")


def lines(name: str, count: int, start: int = 0) -> str:
    """Rows that are no copies of each other: a number's digits as words."""
    rows = (" ".join(f"{WORDS[int(digit)]} {name}{place}" for place, digit in enumerate(f"{n:05d}"))
            for n in range(start, start + count))  # fmt: skip
    return "".join(json.dumps({"prompt": f"{text} {name}?", "completion": "A"}) + "\n" for text in rows)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 300), ("b", 400), ("c", 90)):
        (tmp_path / f"{name}.jsonl").write_text(lines(name, count))
    for name in ("gold", "held"):
        (tmp_path / f"{name}.jsonl").write_text(lines(name, 20))
    return tmp_path


def judged(train: object, **more: object) -> Splits:
    return prepare(Data(train=train, test="gold.jsonl", validation="held.jsonl", **more), 17)  # type: ignore[arg-type]


def by_source(splits: Splits) -> dict[str, int]:
    return dict(Counter(str(row.meta["data_source"]) for row in splits.train))


def test_a_pattern_is_every_file_that_fits_and_another_split_s_file_is_refused(project: Path) -> None:
    (project / "rows").mkdir()
    for number in range(4):
        content = lines("s", 10, 10 * number).encode()
        (project / "rows" / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(content))
    splits = prepare(Data(train="file:rows/part-*.jsonl.gz", test="gold.jsonl"), 17)
    assert len(splits.train) + len(splits.validation) == 40
    assert {row.where.partition(":")[0] for row in splits.train} == {f"part-{n}.jsonl.gz" for n in range(4)}
    (project / "rows" / "test.jsonl").write_text(lines("t", 10))
    with pytest.raises(RequestError, match="named after another split") as caught:
        judged("rows/*")
    assert "test.jsonl" in caught.value.what
    with pytest.raises(RequestError, match="no file fits"):
        judged("rows/*.csv")


def test_a_pattern_s_digest_is_of_its_files_and_tells_a_changed_or_a_further_one(project: Path) -> None:
    def digest() -> str:
        return content_digests({"data.train": "[ab].jsonl"})["[ab].jsonl"]

    first = digest()
    assert [path.name for path in resolve_all("[ab].jsonl")] == ["a.jsonl", "b.jsonl"]
    assert not is_missing("[ab].jsonl")
    assert is_missing("[xy].jsonl")
    (project / "a.jsonl").write_text(lines("a", 301))
    assert digest() != first
    with pytest.raises(WorkbenchError, match="has changed"):
        prepare(Data(train="[ab].jsonl"), 17, contents={"[ab].jsonl": first})


def test_a_list_of_sources_is_all_their_rows_with_where_each_is_from(project: Path) -> None:
    splits = judged(["a.jsonl", "file:c.jsonl"])
    assert by_source(splits) == {"a": 300, "c": 90}
    assert "from c: 90 train, 0 validation, 0 test rows" in splits.notes
    assert splits.datasets[0]["source"] == "a.jsonl + file:c.jsonl"
    assert len({row.id for row in splits.train}) == 390


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, {"a": 180, "b": 270, "c": 90}),  # c has no more for its part
        (120, {"a": 40, "b": 60, "c": 20}),
        (121, {"a": 40, "b": 61, "c": 20}),
    ],
)
def test_a_mixture_s_parts_are_those_of_the_weights_and_the_seed_draws_them(
    limit: int | None, expected: dict[str, int], project: Path
) -> None:
    mixture = [{"from": f"{name}.jsonl", "weight": weight} for name, weight in (("a", 2), ("b", 3), ("c", 1))]
    splits = judged(mixture, limit=limit)
    assert by_source(splits) == expected
    total = sum(expected.values())
    assert all(abs(count / total - share) < 0.01 for count, share in zip(expected.values(), (2 / 6, 3 / 6, 1 / 6)))
    assert any(line.startswith(f"the mixture's {total} training rows: a {expected['a']}") for line in splits.notes)
    again = judged(mixture, limit=limit)
    assert [row.id for row in again.train] == [row.id for row in splits.train]
    other = prepare(Data(train=mixture, test="gold.jsonl", validation="held.jsonl", limit=limit), 18)
    assert [row.id for row in other.train] != [row.id for row in splits.train]


def test_a_mixture_of_which_parts_are_split_off_keeps_its_weights(project: Path) -> None:
    mixture = [{"from": "a.jsonl", "weight": 1, "name": "first"}, {"from": "b.jsonl", "weight": 3}]
    splits = prepare(Data(train=mixture, limit=80), 17)
    assert by_source(splits) == {"first": 20, "b": 60}
    assert {row.meta["data_source"] for row in splits.test} == {"first", "b"}


def test_a_mixture_holds_no_more_rows_than_it_takes(project: Path) -> None:
    (project / "a.jsonl").write_text(lines("a", 5000))
    mixture = [{"from": "a.jsonl", "weight": 1}, {"from": "c.jsonl", "weight": 1}]
    splits = judged(mixture, limit=40)
    assert by_source(splits) == {"a": 20, "c": 20}
    assert any("130 of 5,000 rows drawn by the seed" in line for line in splits.notes)


def test_ids_that_two_sources_share_are_told_apart(project: Path) -> None:
    row = {"id": "1", "prompt": "amber?", "completion": "A"}
    (project / "x.jsonl").write_text(json.dumps(row))
    (project / "y.jsonl").write_text(json.dumps(row | {"prompt": "birch!"}))
    assert sorted(row.id for row in judged(["x.jsonl", "y.jsonl"]).train) == ["1", "1-2"]


def test_a_folder_s_own_test_rows_are_judged_on_and_never_ignored(project: Path) -> None:
    (project / "set").mkdir()
    for part, count in (("train", 30), ("test", 10)):
        (project / "set" / f"{part}.jsonl").write_text(lines(part, count))
    splits = prepare(Data(train="dir:set"), 17)
    assert len(splits.test) == 10
    assert len(splits.train) + len(splits.validation) == 30
    assert "test: the split of dir:set (data.test names no other)" in splits.notes


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        ([], "data.train", "names no source"),
        ([{"weight": 2}], r"data.train\[0\]", "names no source of rows"),
        ([{"from": "a", "wieght": 2}], r"data.train\[0\].wieght", "no such key"),
        ([{"from": "a", "weight": 0}], r"data.train\[0\].weight", "above 0"),
        ([{"from": "a", "weight": True}], r"data.train\[0\].weight", "above 0"),
        ([{"from": "a", "weight": 1}, "b"], "data.train", "others none"),
        (["x/a.jsonl", "x/a.jsonl"], "data.train", "two sources are called"),
        (7, "data.train", "names no source of rows"),
    ],
)
def test_a_list_that_names_no_sources_is_refused_with_its_place(value: object, where: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        row_sources(value, "data.train")
    assert caught.value.where == where.replace("\\", "")


def test_sources_on_one_line() -> None:
    assert source_text(["a.jsonl", {"from": "hf:x/y"}]) == "a.jsonl + hf:x/y"
    assert source_text(None) == ""
