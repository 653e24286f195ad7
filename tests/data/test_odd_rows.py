"""Rows as files of the field really hold them: read as they are meant, refused with the way out, or counted aloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from row_files import one, read
from workbench.data.load import load
from workbench.errors import RequestError
from workbench.recipe import Columns, Data
from workbench.records import Message, ToolCall

ASK, SAY = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "At home."}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def noted(folder: Path, *rows: Any, **data: Any) -> str:
    """What is said of the rows, in one text; all of them must be read."""
    loaded = read(folder, *rows, **data)
    assert loaded.bad == []
    return "\n".join(loaded.notes)


def file_of(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "completion": "NaN"}, "1 answers of r.jsonl are what a program writes for nothing"),
        ({"prompt": "None", "completion": "a"}, "1 texts of the user of r.jsonl are what a program writes for nothing"),
        ({"prompt": "q", "completion": "schÃ¶n"}, "hold UTF-8 that was read as Windows-1252"),
        ({"prompt": "q", "completion": "so â€“ gut"}, "hold UTF-8 that was read as Windows-1252"),
        ({"prompt": "q", "completion": "ÐŸÑ€Ð¸Ð²ÐµÑ‚"}, "hold UTF-8 that was read as Windows-1252"),
        ({"prompt": "q", "completion": "a</s>"}, "end with a mark that ends another model's texts"),
        ({"prompt": "q", "completion": "a\r\nb"}, "hold the line ends of Windows"),
        ({"prompt": "\ufeffq", "completion": "a"}, "begin with a byte order mark"),
        ({"messages": [{"role": "user", "content": "<image>What?"}, SAY]}, "stands for a picture or a sound"),
        ({"prompt": "q", "completion": '<tool_call>{"name": "f"}</tool_call> and more'}, "hold a call within"),
        ({"messages": [ASK, SAY | {"tool_calls": [CALL]}]}, "call functions and have no `tools`"),
        ({"messages": [ASK, SAY | {"tool_calls": [CALL]}], "tools": [{"name": "look"}]}, "none of their `tools`"),
        ({"messages": [ASK, SAY | {"tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c9", "content": "x"}, SAY],
          "tools": [TOOL]}, "have a result with an id that is no call's"),
    ],
)  # fmt: skip
def test_what_looks_as_if_it_had_gone_wrong_before_is_counted_aloud_and_not_changed(
    row: Any, words: str, tmp_path: Path
) -> None:
    loaded = read(tmp_path, row)
    assert any(words in line and "(the first: " in line for line in loaded.notes), loaded.notes
    assert loaded.bad == []
    if "completion" in row:
        assert loaded.examples[0].messages[-1].content == row["completion"]


def test_plain_rows_are_not_called_odd(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Is it über, naïve, São?", "completion": "none"}, {"prompt": "«Été» – “IRMÃ”", "completion": "N/A"},
        {"prompt": "Привет, Ðorđe", "completion": "a</span>"}, {"messages": [ASK, SAY], "tools": [TOOL]},
    ]  # fmt: skip
    for row in rows:
        assert "(the first" not in noted(tmp_path, row)


@pytest.mark.parametrize("sign", ["\u200b", "\ufeff\u00ad", "\u00a0\u200d "])
def test_an_answer_that_shows_nothing_is_empty(sign: str, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": sign}, {"messages": [ASK, SAY | {"content": sign}]}]
    for row in rows:
        [bad] = read(tmp_path, row).bad
        assert "is empty" in bad.reason
    assert one(tmp_path, {"prompt": "q", "completion": f"{sign}x"}).answer == f"{sign}x"


@pytest.mark.parametrize(
    ("flag", "no", "yes"), [("training", False, True), ("trainable", False, True), ("train", 0, 1)]
)
def test_a_turn_says_by_any_of_the_usual_words_whether_it_is_trained(
    flag: str, no: Any, yes: Any, tmp_path: Path
) -> None:
    turns = [ASK | {flag: no}, SAY | {flag: no, "content": "Go away."}, ASK, SAY | {flag: yes}]
    assert [m.weight for m in one(tmp_path, {"messages": turns}).messages] == [None, 0.0, None, 1.0]
    [bad] = read(tmp_path, {"messages": [ASK, SAY | {flag: 7}]}).bad
    assert "not true or false" in bad.reason
    [bad] = read(tmp_path, {"messages": [ASK, SAY | {"loss_mask": [0, 1]}]}).bad
    assert "'loss_mask', which is not read" in bad.reason


def test_what_a_tool_gave_back_may_be_any_json_and_parts_need_no_type(tmp_path: Path) -> None:
    for result, text in (({"ok": True}, '{"ok": true}'), ([1, {"a": None}], '[1, {"a": null}]'),
                         ([{"text": "x"}, {"type": "text", "text": "y"}], "x\ny")):  # fmt: skip
        turns = [ASK, SAY | {"tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": result}, SAY]
        assert one(tmp_path, {"messages": turns, "tools": [TOOL]}).messages[2].content == text
    by_name = {"role": "tool", "tool_name": "find", "content": "x"}
    assert one(tmp_path, {"messages": [ASK, SAY | {"tool_calls": [CALL]}, by_name, SAY]}).messages[2].name == "find"
    bedrock = {
        "system": [{"text": "Be short."}],
        "messages": [turn | {"content": [{"text": turn["content"]}]} for turn in (ASK, SAY)],
    }
    assert [m.content for m in one(tmp_path, bedrock).messages] == ["Be short.", "Where is it?", "At home."]
    [bad] = read(tmp_path, {"messages": [ASK | {"content": [{"image": {"format": "png"}}]}, SAY]}).bad
    assert "only text can be learned" in bad.reason


@pytest.mark.parametrize(
    "turns",
    [
        {"role": ["user", "assistant"], "content": ["Where is it?", "At home."]},  # a sequence, as `datasets` keeps it
        str([ASK, SAY]),  # as pandas writes a list into a CSV
        json.dumps([ASK, SAY]),
    ],
)
def test_turns_are_read_as_tables_and_programs_write_them(turns: Any, tmp_path: Path) -> None:
    wanted = (Message("user", "Where is it?"), Message("assistant", "At home."))
    assert one(tmp_path, {"messages": turns}).messages == wanted
    [bad] = read(tmp_path, {"messages": {"role": ["user", "assistant"], "content": ["a"]}}).bad
    assert "different lengths" in bad.reason
    for text in ("[__import__('os')]", "[" * 500, "hello"):
        [bad] = read(tmp_path, {"messages": text}).bad
        assert "not a JSON list of turns" in bad.reason
    history = {"query": "And now?", "response": "There.", "history": json.dumps([["Where is it?", "At home."]])}
    assert one(tmp_path, history).messages[:2] == wanted
    [bad] = read(tmp_path, history | {"history": "7"}).bad
    assert "history is a number, not a list of pairs" in bad.reason


def test_a_word_on_the_answer_may_be_the_text_that_a_csv_has_for_it(tmp_path: Path) -> None:
    path = file_of(tmp_path, "r.csv", "prompt,completion,label\nq,a,True\nq2,b,false\n")
    loaded = load(path, Data())
    assert (loaded.material, [e.good for e in loaded.examples]) == ("judged answers", [True, False])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversation_id": 1, "role": "user", "message": "Hi"}, "gather the turns of a conversation into one row"),
        ({"dialogue": [ASK, SAY], "lang": "en"}, "dialogue holds turns: call that column `messages`"),
        ({"id": 1, "body": {"model": "m", "messages": [ASK, SAY]}}, "write its messages (and its tools) at the top"),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better": 1}, "write the better one into chosen"),
        ({"question": "q", "response_j": "a", "response_k": "b"}, "response_j and response_k are several answers"),
    ],
)
def test_no_remedy_proposes_a_column_that_is_not_the_wanted_answer(row: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, row, row)
    assert words in caught.value.remedy
    assert "columns: {" not in caught.value.remedy


def test_a_list_of_objects_is_proposed_as_an_answer_only_as_the_json_that_it_would_be(tmp_path: Path) -> None:
    row = {"instruction": "q", "completions": [{"response": "a", "rating": 1}]}
    with pytest.raises(RequestError) as caught:
        read(tmp_path, row, row)
    json_way = "as JSON writes it: columns: {prompt: instruction, answer: completions}"
    for words in ("write the text that is wanted into a column of its own", "into chosen and rejected", json_way):
        assert words in caught.value.remedy


@pytest.mark.parametrize(
    "table",
    [
        {"prompt": {"0": "a", "1": "c"}, "completion": {"0": "b", "1": "d"}},
        {"prompt": ["a", "c"], "completion": ["b", "d"]},
        {"0": {"prompt": "a", "completion": "b"}, "1": {"prompt": "c", "completion": "d"}},
        {"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_table_written_by_its_columns_is_refused_with_the_way_to_rows(
    table: Any, indent: int | None, tmp_path: Path
) -> None:
    path = file_of(tmp_path, "r.json", json.dumps(table, indent=indent))
    with pytest.raises(RequestError, match="the columns of a table") as caught:
        load(path, Data())
    assert "orient='records'" in caught.value.remedy
    wrapped = file_of(tmp_path, "w.json", json.dumps({"columns": ["x"], "data": [{"prompt": "a", "completion": "b"}]}))
    assert len(load(wrapped, Data()).examples) == 1


def test_excel_s_line_that_names_the_delimiter_is_no_header(tmp_path: Path) -> None:
    for sign in ";,|":
        text = f"sep={sign}\r\nprompt{sign}completion\r\na{sign}b\r\nc{sign}\r\n"
        loaded = load(file_of(tmp_path, "r.csv", text), Data())
        assert [(e.text, e.answer, e.where) for e in loaded.examples] == [("a", "b", "r.csv:3")]
        assert [bad.where for bad in loaded.bad] == ["r.csv:4"]


def test_two_columns_of_one_name_are_refused_in_a_table_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    columns = [pyarrow.array([text]) for text in "abc"]
    table = pyarrow.table(columns, names=["prompt", "completion", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    with pyarrow.ipc.new_file(tmp_path / "r.arrow", table.schema) as file:
        file.write(table)
    for name in ("r.parquet", "r.arrow"):
        with pytest.raises(RequestError, match="columns with one name: completion"):
            load(tmp_path / name, Data())


def test_calls_and_columns_keep_their_meaning_beside_what_is_new(tmp_path: Path) -> None:
    turns = [ASK, SAY | {"tool_calls": [CALL]}]
    assert one(tmp_path, {"messages": turns, "tools": [TOOL]}).messages[-1].tool_calls == (
        ToolCall("find", "{}", "c1"),
    )
    table = {"q": "Where?", "answer_a": "x", "answer_b": "y"}
    assert one(tmp_path, table, columns=Columns(prompt="q", answer="answer_b")).answer == "y"
