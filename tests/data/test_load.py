"""Every layout in every container, and what becomes of rows that cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.load import load, write_quarantine
from workbench.errors import RequestError
from workbench.recipe import Columns, Data

TURNS = [{"role": "user", "content": "Ask 1"}, {"role": "assistant", "content": "Answer 1"}]
GPT_TURNS = [{"from": "human", "value": "Ask 1"}, {"from": "gpt", "value": "Answer 1"}]
LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": GPT_TURNS},
    "prompt_completion": {"prompt": "Ask 1", "completion": "Answer 1"},
    "alpaca": {"instruction": "Ask 1", "input": "", "output": "Answer 1"},
    "columns": {"frage": "Ask 1", "antwort": "Answer 1"},
}
MAPPING = Columns(prompt="frage", answer="antwort")
BY_COLUMNS = Data(columns=MAPPING)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write(container: str, rows: list[dict[str, Any]], folder: Path) -> Path:
    match container:
        case "jsonl":
            return write_jsonl(folder / "rows.jsonl", rows)
        case "json":
            (folder / "rows.json").write_text(json.dumps(rows, indent=2))
            return folder / "rows.json"
        case "csv":
            with (folder / "rows.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                for row in rows:
                    writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
            return folder / "rows.csv"
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
            return folder / "rows.parquet"
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "parquet", "datasets"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_each_layout_is_found_in_each_container(layout: str, container: str, tmp_path: Path) -> None:
    rows = [LAYOUTS[layout] | {"id": "a", "kind": "x"}, LAYOUTS[layout] | {"id": "b", "kind": "y"}]
    path = write(container, rows, tmp_path)
    found = load(path, BY_COLUMNS if layout == "columns" else Data())
    assert found.format == layout
    assert any(f"2 rows as {layout} from {path.name}" in line for line in found.notes)
    assert found.bad == []
    assert [(e.id, e.text, e.answer, e.meta) for e in found.examples] == [
        ("a", "Ask 1", "Answer 1", {"kind": "x"}),
        ("b", "Ask 1", "Answer 1", {"kind": "y"}),
    ]


def test_prompt_and_completion_may_be_lists_of_turns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt": TURNS[:1], "completion": TURNS[1:]}])
    assert load(path, Data()).examples[0].answer == "Answer 1"


def test_system_and_instruction_are_put_in_but_are_not_the_rows_own_text(tmp_path: Path) -> None:
    with_system = {"messages": [{"role": "system", "content": "Own"}, *TURNS]}
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["messages"], with_system])
    first, second = load(path, Data(system="Be brief.", instruction="Classify.\n")).examples
    assert [(m.role, m.content) for m in first.prompt] == [("system", "Be brief."), ("user", "Classify.\n\nAsk 1")]
    assert second.messages[0].content == "Own"
    assert first.text == "Ask 1"


def test_a_system_column_wins_over_the_recipes_system_prompt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["columns"] | {"s": "Mine"}, LAYOUTS["columns"] | {"s": ""}])
    columns = Columns(prompt="frage", answer="antwort", system="s")
    found = load(path, Data(columns=columns, system="Recipe's"))
    assert [e.messages[0].content for e in found.examples] == ["Mine", "Recipe's"]


def test_ids_without_an_id_are_digests_that_no_instruction_changes_and_repeats_are_told_apart(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["messages"]] * 3)
    found = load(path, Data())
    base = found.examples[0].id
    assert len(base) == 16
    assert [e.id for e in found.examples] == [base, f"{base}-2", f"{base}-3"]
    assert any("no id" in line for line in found.notes)
    assert any("2 ids" in line and "taken already" in line for line in found.notes)
    assert load(path, Data(instruction="Other")).examples[0].id == base


def test_groups_come_from_their_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["columns"] | {"doc": 7}])
    columns = Columns(prompt="frage", answer="antwort", group="doc")
    assert load(path, Data(columns=columns)).examples[0].group == "7"


BAD_LINES = [
    ('{"messages": [', "broken JSON"),
    ("[1, 2]", "object"),
    ('{"text": "x"}', "no messages"),
    (json.dumps({"messages": TURNS[:1]}), "no user turn|last turn"),
    (json.dumps({"messages": [*TURNS, TURNS[0]]}), "last turn is the user's"),
    (json.dumps({"messages": TURNS[1:]}), "no user turn"),
    (json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": "  "}]}), "answer is empty"),
    (json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": None}]}), "answer is missing"),
    (json.dumps({"messages": [{"role": "user", "content": {"a": 1}}, TURNS[1]]}), "an object, not text"),
    (json.dumps({"messages": [{"role": "tool", "content": "x"}, *TURNS]}), "role 'tool'"),
    (json.dumps({"messages": "hello"}), "not a JSON list"),
    (json.dumps({"messages": []}), "empty"),
    (json.dumps({"messages": TURNS, "note": "a\x00b"}), "NUL"),
    ('{"messages": "\\ud800"}', "UTF-8"),
    ("[" * 100_000, "broken JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_is_set_aside_with_its_line_and_reason(line: str, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["messages"], "", line, LAYOUTS["messages"]])
    found = load(path, Data())
    assert len(found.examples) == 2
    [bad] = found.bad
    assert bad.where == "r.jsonl:3"
    assert any(part in bad.reason for part in reason.split("|")), bad.reason
    assert bad.raw == line[:500]
    assert any("1 rows of r.jsonl set aside" in text for text in found.notes)


def test_bytes_that_are_not_utf8_cost_only_their_row_and_can_be_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    good = json.dumps(LAYOUTS["messages"]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + b'{"messages": "caf\xe9"}\n' + good)
    found = load(path, Data())
    assert len(found.examples) == 2
    assert [(b.where, b.reason[:9]) for b in found.bad] == [("r.jsonl:2", "not UTF-8")]
    assert "data.encoding=windows-1252" in found.bad[0].reason
    write_quarantine(found.bad, tmp_path / "run" / "quarantine.jsonl")
    [line] = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "r.jsonl:2"
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "quarantine.jsonl"]


def test_a_line_separator_inside_a_string_starts_no_new_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    row = {"prompt": "a\u2028b\x0bc", "completion": "d"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert load(path, Data()).examples[0].text == "a\u2028b\x0bc"


def test_rows_of_a_json_array_carry_the_line_they_start_on(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([LAYOUTS["messages"], {"messages": 3}, LAYOUTS["messages"]], indent=1))
    found = load(path, Data())
    lines = path.read_text().splitlines()
    assert [lines[int(e.where.split(":")[1]) - 1].strip() for e in found.examples] == ["{", "{"]
    above = lines.index('  "messages": 3')
    assert found.bad[0].where == f"r.json:{above}"


@pytest.mark.parametrize("text", ['[{"prompt": "a", "completion": "b"}, {"prompt"', '[{"prompt": "a"} {}]', "[{}]]"])
def test_a_broken_json_array_is_refused_since_its_rows_cannot_be_counted(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RequestError, match=r"array"):
        load(tmp_path / "r.json", Data())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_finds_its_delimiter_skips_a_bom_and_counts_the_files_own_lines(delimiter: str, tmp_path: Path) -> None:
    rows = ["frage;antwort", '"one, two;\nthree";A', "", '"a ""quoted"" word";', "x;B"]
    text = "\r\n".join(rows).replace(";", delimiter).replace(f"two{delimiter}", "two;")
    (tmp_path / "r.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = load(tmp_path / "r.csv", BY_COLUMNS)
    assert [(e.where, e.text, e.answer) for e in found.examples] == [
        ("r.csv:2", "one, two;\nthree", "A"),
        ("r.csv:6", "x", "B"),
    ]
    assert [(b.where, b.reason) for b in found.bad] == [("r.csv:5", "answer (antwort) is empty")]
    assert any("is cut at" in line for line in found.notes) == (delimiter in ";|")


def test_an_unclosed_quote_costs_one_csv_row_and_not_the_rest_of_the_file(tmp_path: Path) -> None:
    lines = ["frage,antwort", "a,1", '"b,2', *(f"c{i},3" for i in range(20)), "d,4,5", "e,6", '"f,7', "g,8"]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    found = load(tmp_path / "r.csv", BY_COLUMNS)
    assert [b.where for b in found.bad] == ["r.csv:3", "r.csv:24", "r.csv:26"]
    assert "3 fields where the header has 2" in found.bad[1].reason
    assert [e.where for e in found.examples] == [f"r.csv:{n}" for n in (2, *range(4, 24), 25, 27)]


def test_parquet_and_its_undecodable_text_and_numbers_for_text(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"frage": texts, "antwort": ["1", "2", "3"]}), tmp_path / "r.parquet")
    found = load(tmp_path / "r.parquet", BY_COLUMNS)
    assert [e.where for e in found.examples] == ["r.parquet:1", "r.parquet:3"]
    assert [b.where for b in found.bad] == ["r.parquet:2"]
    pq.write_table(pa.table({"frage": ["a"], "antwort": [1]}), tmp_path / "r.parquet")
    found = load(tmp_path / "r.parquet", BY_COLUMNS)
    assert found.examples[0].answer == "1"
    assert "1 texts of r.parquet were numbers, true or false, or objects: taken as JSON writes them" in found.notes


def test_a_saved_data_set_gives_the_split_asked_for_and_class_labels_by_name(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"frage": Value("string"), "antwort": ClassLabel(names=["no", "yes"])})
    parts = {
        name: Dataset.from_dict({"frage": [name] * 2, "antwort": [0, 1]}, features=features)
        for name in ("train", "dev", "extra")
    }
    DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = load(tmp_path / "saved", BY_COLUMNS, part="validation")
    assert [(e.text, e.answer) for e in found.examples] == [("dev", "no"), ("dev", "yes")]
    assert any("'dev'" in line for line in found.notes)
    with pytest.raises(RequestError, match="no split 'test'"):
        load(tmp_path / "saved", BY_COLUMNS, part="test")


def test_a_folder_of_files_gives_the_files_named_after_the_split(tmp_path: Path) -> None:
    for name in ("train-00000", "train-00001", "test-00000"):
        write_jsonl(tmp_path / f"{name}.jsonl", [LAYOUTS["messages"] | {"id": name}])
    assert [e.id for e in load(tmp_path, Data()).examples] == ["train-00000", "train-00001"]
    assert [e.where for e in load(tmp_path, Data(), part="test").examples] == ["test-00000.jsonl:1"]
    with pytest.raises(RequestError, match="which file of this folder"):
        load(tmp_path, Data(), part="validation")


@pytest.mark.parametrize("role", ["prompt", "answer", "id", "group", "system"])
def test_a_mapped_column_that_is_not_there_is_refused_with_the_nearest(role: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["columns"] | {"nummer": 1}])
    columns = Columns(**{"prompt": "frage", "answer": "antwort", role: "antwrt"})
    with pytest.raises(RequestError) as caught:
        load(path, Data(columns=columns))
    assert caught.value.where == f"data.columns.{role}"
    assert "frage, antwort, nummer" in caught.value.what
    assert caught.value.remedy == "did you mean 'antwort'?"


@pytest.mark.parametrize(
    ("columns", "where"),
    [
        (Columns(), "data.columns.prompt and data.columns.answer"),
        (Columns(prompt="frage"), "data.columns.answer"),
        (Columns(answer="antwort"), "data.columns.prompt"),
    ],
)
def test_unknown_columns_are_refused_with_the_lines_to_add(columns: Columns, where: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["columns"]])
    with pytest.raises(RequestError) as caught:
        load(path, Data(columns=columns))
    assert caught.value.where == where
    assert "frage, antwort" in caught.value.what
    assert "data:\n      columns: {prompt: frage, answer: antwort}" in caught.value.remedy


def test_a_format_that_no_row_has_and_a_mapping_it_does_not_read_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [LAYOUTS["alpaca"]])
    with pytest.raises(RequestError, match="messages rows have messages"):
        load(path, Data(format="messages"))
    with pytest.raises(RequestError, match="say nothing to the format"):
        load(path, Data(format="alpaca", columns=Columns(prompt="instruction", answer="output")))


@pytest.mark.parametrize(("name", "content"), [("r.xlsx", b"PK"), ("r.parquet", b"no"), ("r.jsonl", b"\xff\xfe{\x00")])
def test_a_file_that_is_no_data_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError):
        load(tmp_path / name, Data())


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    with pytest.raises(RequestError) as caught:
        load(tmp_path / "trian.jsonl", Data())
    assert "train.jsonl" in caught.value.remedy


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner),
    max_leaves=6,
)
ROWS = st.lists(
    st.just(LAYOUTS["messages"])
    | st.fixed_dictionaries({"messages": VALUES})
    | st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": VALUES})
    ).map(lambda turns: {"messages": turns}),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, junk=st.lists(st.binary(max_size=12).filter(lambda b: b.strip() and b"\n" not in b), max_size=4))
def test_examples_and_bad_rows_together_are_all_rows(
    rows: list[Any], junk: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    lines = [json.dumps(LAYOUTS["messages"]).encode(), *(json.dumps(row).encode() for row in rows), *junk]
    path.write_bytes(b"\n".join(lines))
    found = load(path, Data())
    numbers = sorted(int(x.where.split(":")[1]) for x in [*found.examples, *found.bad])
    blank = [i for i, line in enumerate(lines, 1) if not line.decode("utf-8", "surrogateescape").strip()]
    assert numbers == [i for i in range(1, len(lines) + 1) if i not in blank]
    assert len({e.id for e in found.examples}) == len(found.examples)
