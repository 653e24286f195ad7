"""Rows are read from whatever a team keeps them in, or refused with what to do; nothing is left out in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from workbench.data.containers import read_rows, splits_of
from workbench.data.load import load
from workbench.errors import RequestError
from workbench.recipe import Columns, Data

ROWS = [{"prompt": f"How many are {n}?", "completion": str(n)} for n in range(12)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = Data(columns=Columns(prompt="frage", answer="antwort"))


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


def texts(path: Path, data: Data | None = None) -> list[str]:
    return [e.text for e in load(path, data or Data()).examples]


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_packed_files_are_read_by_their_ending_and_a_cut_one_is_refused(
    ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(pack(LINES.encode()))
    assert texts(path) == [row["prompt"] for row in ROWS]
    path.write_bytes(pack(LINES.encode())[:-20])
    with pytest.raises(RequestError, match="cannot be unpacked") as caught:
        load(path, Data())
    assert str(path) in caught.value.where


def test_several_members_in_one_gz_are_read_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(line.encode()) for line in LINES.splitlines(keepends=True)))
    assert texts(path) == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "result": {"note": "x", "rows": ROWS}}, indent=2),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        ",\n".join(json.dumps(row, indent=2) for row in ROWS),
        "\n\n" + ",\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS, indent=1),
    ],
    ids=["wrapped", "wrapped twice", "pretty", "pretty with commas", "commas", "array"],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_is_read_in_every_form_in_which_it_is_plain_what_a_row_is(
    content: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text(content)
    assert texts(path) == [row["prompt"] for row in ROWS]


def test_where_rows_lay_in_an_object_and_what_else_it_held_is_said_with_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=2))
    loaded = load(path, Data())
    assert "rows.json has its rows under 'data'" in loaded.notes
    assert "not used of rows.json: version" in loaded.notes
    lines = path.read_text().split("\n")
    assert all("{" in lines[int(e.where.partition(":")[2]) - 1] for e in loaded.examples)


def test_one_object_with_the_lists_of_several_splits_gives_each_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS[:8], "test": ROWS[8:]}, indent=2))
    loaded = load(path, Data())
    assert [e.text for e in loaded.examples] == [row["prompt"] for row in ROWS[:8]]
    assert "not among the train rows of rows.json: test" in loaded.notes
    assert len(load(path, Data(), part="test").examples) == 4
    path.write_text(json.dumps({"one": ROWS[:8], "other": ROWS[8:]}))
    with pytest.raises(RequestError, match="which list holds the train rows") as caught:
        load(path, Data())
    assert "one, other" in caught.value.what


def test_a_single_row_of_turns_is_a_row_and_no_list_of_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))
    assert texts(tmp_path / "rows.jsonl") == ["Hi"]


def test_a_broken_first_line_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a",\n' + LINES)
    loaded = load(tmp_path / "rows.jsonl", Data())
    assert len(loaded.examples) == 12
    assert [b.where for b in loaded.bad] == ["rows.jsonl:1"]


def test_windows_1252_is_named_and_read_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("frage,antwort\n„Kündigung“ für 3 €?,Verträge\nplain,A\n".encode("windows-1252"))
    loaded = load(path, TABLE)
    assert len(loaded.examples) == 1
    assert "reads as Windows-1252: data.encoding=windows-1252" in loaded.bad[0].reason
    named = Data(columns=TABLE.columns, encoding="windows-1252")
    assert texts(path, named) == ["„Kündigung“ für 3 €?", "plain"]
    path.write_bytes("frage,antwort\n这是一个关于合同的问题,合同\n".encode("gb18030"))
    assert load(path, TABLE).bad[0].reason == "not UTF-8: name its encoding, data.encoding=…"
    assert texts(path, Data(columns=TABLE.columns, encoding="gb18030")) == ["这是一个关于合同的问题"]


def test_utf_16_is_read_by_its_key_and_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(LINES, encoding="utf-16")
    with pytest.raises(RequestError, match="UTF-16") as caught:
        load(path, Data())
    assert "data.encoding=utf-16" in caught.value.remedy
    assert texts(path, Data(encoding="utf-16")) == [row["prompt"] for row in ROWS]
    with pytest.raises(RequestError, match="no such encoding"):
        load(path, Data(encoding="utf-99"))


@pytest.mark.parametrize(
    ("name", "content", "first", "note"),
    [
        ("rows.tsv", 'frage\tantwort\n"Where is it?\tA\nno quote\tB\n', '"Where is it?', "none"),
        ("rows.tsv", 'frage\tantwort\n5" pipe\tA\n"both"\tB\n', '5" pipe', "none"),
        ("rows.tsv", 'frage\tantwort\n"a ""b"""\tA\n"c\nd"\tB\n', 'a "b"', ""),
        ("rows.csv", 'frage,antwort\n"She said \\"no\\", twice",A\n"x",B\n', 'She said "no", twice', "backslash"),
        ("rows.csv", 'frage,antwort\n"She said ""no"", twice",A\n"x\\",B\n', 'She said "no", twice', ""),
    ],
)
def test_the_way_of_quoting_is_told_by_the_rows_and_said(
    name: str, content: str, first: str, note: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    loaded = load(tmp_path / name, TABLE)
    assert loaded.bad == []
    assert (len(loaded.examples), loaded.examples[0].text) == (2, first)
    assert [line for line in loaded.notes if "data.quoting" in line] == [
        line for line in loaded.notes if note and f"data.quoting={note}" in line
    ]


def test_the_way_of_quoting_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('frage,antwort\n"a",A\n')
    assert texts(tmp_path / "rows.csv", Data(columns=TABLE.columns, quoting="none")) == ['"a"']


def test_shards_of_a_folder_are_read_together_and_what_is_of_another_split_is_said(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}.jsonl").write_text("".join(LINES.splitlines(keepends=True)[number::3]))
    assert len(texts(tmp_path)) == 12
    (tmp_path / "test.jsonl").write_text(LINES)
    loaded = load(tmp_path, Data())
    assert len(loaded.examples) == 12
    assert "not among the train rows: test.jsonl" in loaded.notes
    assert splits_of(tmp_path) == {"test"}


@pytest.mark.parametrize(("name", "remedy"), [("rows.xlsx", "CSV"), ("rows.zip", "unzip rows.zip"), ("rows", "rename")])
def test_a_file_that_is_not_read_gets_the_way_to_one_that_is(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(RequestError, match="a data file ends in one of") as caught:
        load(tmp_path / name, Data())
    assert remedy in caught.value.remedy


def test_class_labels_of_parquet_and_arrow_files_come_as_their_names(tmp_path: Path) -> None:
    names = {"info": {"features": {"antwort": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    schema = pyarrow.schema(
        [("frage", pyarrow.string()), ("antwort", pyarrow.int64())], {"huggingface": json.dumps(names)}
    )
    table = pyarrow.table({"frage": ["a", "b", "c"], "antwort": [1, 0, -1]}, schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    for name in ("rows.parquet", "rows.arrow"):
        loaded = load(tmp_path / name, TABLE)
        assert [e.answer for e in loaded.examples] == ["yes", "no"]
        assert [b.where for b in loaded.bad] == [f"{name}:3"]


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz", "parquet"])
def test_reading_holds_no_more_of_a_file_of_three_times_the_rows(ending: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.{ending}"
        rows = [{"frage": f"What of number {n}? " + "x" * 400, "antwort": "A"} for n in range(count)]
        if ending == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1000)
        else:
            csv = "frage,antwort\n" + "".join(f"{row['frage']},A\n" for row in rows)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            path.write_bytes(gzip.compress((csv if "csv" in ending else lines).encode(), 1))
        tracemalloc.start()
        read = sum(raw.row is not None for raw in read_rows(path, "train", []))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert read == count
        return most

    peak(100)
    small, large = peak(2_500), peak(7_500)
    assert large < 1.1 * small + 200_000
