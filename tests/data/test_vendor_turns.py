"""Rows as the files of Claude, Gemini and gpt-oss hold them are read as OpenAI's are: nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from row_files import one, read
from workbench.data.load import load
from workbench.data.prepare import prepare
from workbench.errors import RequestError
from workbench.recipe import Columns, Data

ASK, SAY = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "At home."}
CALL = {"type": "tool_use", "id": "a1", "name": "find", "input": {"id": 7}}


def why(folder: Path, row: Any) -> str:
    (bad,) = read(folder, row).bad
    return bad.reason


def test_claude_s_thoughts_texts_and_calls_of_one_turn_are_one_turn(tmp_path: Path) -> None:
    parts = [
        {"type": "thinking", "thinking": "It was tired.", "signature": "x"},
        {"type": "text", "text": "Let me see."},
        CALL,
    ]
    result = {"type": "tool_result", "tool_use_id": "a1", "content": [{"type": "text", "text": "home"}]}
    turns = [ASK, {"role": "assistant", "content": parts}, {"role": "user", "content": [result]}, SAY]
    loaded = read(tmp_path, {"system": [{"type": "text", "text": "Be short."}], "messages": turns})
    system, _, called, told, said = loaded.examples[0].messages
    assert (system.role, system.content) == ("system", "Be short.")
    assert (called.reasoning, called.content, called.tool_calls[0].name) == ("It was tired.", "Let me see.", "find")
    assert (told.role, told.content, told.name, told.tool_call_id) == ("tool", "home", "find", "a1")
    assert said.content == "At home."
    assert "not used of r.jsonl: content[].signature" in loaded.notes


def test_what_a_user_says_beside_claude_s_results_is_a_turn_of_its_own_and_an_error_is_named(tmp_path: Path) -> None:
    parts = [
        {"type": "tool_result", "tool_use_id": "a1", "content": "home", "is_error": True},
        {"type": "text", "text": "Is that sure?"},
    ]
    turns = [ASK, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": parts}, SAY]
    loaded = read(tmp_path, {"messages": turns})
    assert [(m.role, m.content) for m in loaded.examples[0].messages[2:]] == [
        ("tool", "home"), ("user", "Is that sure?"), ("assistant", "At home."),
    ]  # fmt: skip
    assert "not used of r.jsonl: content[].is_error" in loaded.notes


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ASK, {"role": "assistant", "content": [CALL, {"type": "text", "text": "There."}]}], "text after a call"),
        ([{"role": "user", "content": [CALL]}, SAY], "'tool_use' that is not its role's"),
        ([ASK, {"role": "assistant", "content": [{"type": "tool_result", "content": "x"}]}], "not its role's"),
        ([ASK, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}], "'redacted_thinking'"),
        ([ASK, SAY | {"channel": "analysis"}], "no answer follows"),
        ([ASK, SAY | {"channel": "analysis"}, ASK, SAY], "not the answer to its thoughts"),
        ([ASK, SAY | {"channel": "whisper"}], "in the channel 'whisper'"),
    ],
)
def test_what_cannot_be_read_in_another_s_turns_refuses_the_row(
    turns: list[dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    assert reason in why(tmp_path, {"messages": turns})


def test_the_channel_analysis_holds_the_thoughts_of_the_answer_that_follows(tmp_path: Path) -> None:
    thought = {"role": "assistant", "channel": "analysis", "content": "It was tired."}
    example = one(tmp_path, {"messages": [ASK, thought, SAY | {"channel": "final"}]})
    assert [m.role for m in example.messages] == ["user", "assistant"]
    assert (example.messages[1].reasoning, example.answer) == ("It was tired.", "At home.")


def test_gemini_s_contents_bring_their_system_text_thoughts_and_calls(tmp_path: Path) -> None:
    row = {
        "systemInstruction": {"role": "system", "parts": [{"text": "Be short."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Where"}, {"text": "is it?"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "It was tired.", "thought": True},
                    {"text": "At home.", "thoughtSignature": "x"},
                ],
            },
        ],
    }
    loaded = read(tmp_path, row)
    assert "not used of r.jsonl: contents[].parts[].thoughtSignature" in loaded.notes
    (example,) = loaded.examples
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "Be short."), ("user", "Where\nis it?"), ("assistant", "At home."),
    ]  # fmt: skip
    assert example.messages[2].reasoning == "It was tired."
    snake = {"system_instruction": row["systemInstruction"], "contents": row["contents"]}
    assert one(tmp_path, snake).messages == example.messages


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ([{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}]}], "'inlineData': only text and calls"),
        ([{"role": "user", "parts": "Where?"}], "has no list of parts"),
        ("Where?", "text that is not a JSON list"),
        ([], "contents is empty"),
    ],
)
def test_contents_that_hold_no_text_refuse_the_row(contents: Any, reason: str, tmp_path: Path) -> None:
    assert reason in why(tmp_path, {"contents": contents})


def test_gemini_s_rows_without_an_answer_are_a_teacher_s_questions(tmp_path: Path) -> None:
    rows = [{"contents": [{"role": "user", "parts": [{"text": f"Where is {n}?"}]}]} for n in range(4)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = load(tmp_path / "r.jsonl", Data(), unanswered=True)
    assert [(e.text, e.answer) for e in asked.examples] == [(f"Where is {n}?", "") for n in range(4)]


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_key_that_comes_twice_sets_its_row_aside_for_one_of_its_values_would_be_lost(
    form: str, tmp_path: Path
) -> None:
    good, twice = '{"prompt": "a", "completion": "b"}', '{"prompt": "c", "completion": "no", "completion": "yes"}'
    inner = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a", "content": "b"}]}'
    path = tmp_path / ("r.jsonl" if form == "lines" else "r.json")
    rows = [good, twice, inner, good]
    path.write_text("\n".join(rows) if form == "lines" else "[" + ",\n".join(rows) + "]")
    loaded = load(path, Data())
    assert [bad.where for bad in loaded.bad] == [f"{path.name}:2", f"{path.name}:3"]
    assert "'completion' comes twice" in loaded.bad[0].reason
    assert "'content' comes twice" in loaded.bad[1].reason
    assert len(loaded.examples) == 2


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        ({"instruction": "a", "context": "b", "response": "c"},
         ['prompt: "{context}\\n\\n{instruction}"', "answer: response"]),
        ({"id": "1", "title": "t", "context": "b", "question": "q", "answers": {"text": ["c"]}},
         ['prompt: "{context}\\n\\n{question}"', "answers holds an object"]),
        ({"translation": {"en": "a", "de": "b"}}, ["holds an object"]),
        ({"text": "a", "label": "b"}, ["{prompt: text, answer: label}"]),
    ],
)  # fmt: skip
def test_the_columns_that_an_error_proposes_leave_no_text_out(row: Any, lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, row)
    assert all(line in str(caught.value) for line in lines), str(caught.value)


WORD = {"instruction": "Where is it?", "input": "A cat.", "output": "At home."}


@pytest.mark.parametrize(
    ("row", "good"),
    [
        ({"messages": [ASK, SAY], "label": True}, True),
        ({"messages": [ASK, SAY], "label": False}, False),
        (WORD | {"kto_tag": True}, True),
        (WORD | {"kto_tag": False}, False),
    ],
)
def test_a_bad_answer_is_never_learned_as_a_good_one_whatever_its_word_is_called(
    row: dict[str, Any], good: bool, tmp_path: Path
) -> None:
    loaded = read(tmp_path, row)
    assert (loaded.material, [e.good for e in loaded.examples]) == ("judged answers", [good])
    assert [e.good for e in read(tmp_path, row, format="kto").examples] == [good]
    assert len(read(tmp_path, row, format="chosen").examples) == good
    assert not [note for note in loaded.notes if "not used" in note]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAY], "rejected_response": "Gone."},
        {"instruction": "Where is it?", "input": "", "chosen": "At home.", "rejected": "Gone."},
    ],
)
def test_a_rejected_answer_beside_the_wanted_one_makes_a_pair(row: dict[str, Any], tmp_path: Path) -> None:
    loaded = read(tmp_path, row)
    (example,) = loaded.examples
    assert loaded.material == "pairs"
    assert [m.content for m in example.messages] == ["Where is it?", "At home."]
    assert [m.content for m in example.rejected] == ["Gone."]
    assert read(tmp_path, row, format="preference").examples == loaded.examples


@pytest.mark.parametrize("names", [("instruction", "output"), ("query", "response")])
def test_the_turns_of_history_come_before_the_question(names: tuple[str, str], tmp_path: Path) -> None:
    prompt, answer = names
    row = {"system": "Be short.", prompt: "And now?", answer: "Gone.", "history": [["Where is it?", "At home."]]}
    turns = [(m.role, m.content) for m in one(tmp_path, row).messages]
    assert turns == [
        ("system", "Be short."), ("user", "Where is it?"), ("assistant", "At home."),
        ("user", "And now?"), ("assistant", "Gone."),
    ]  # fmt: skip
    assert "is no pair" in why(tmp_path, row | {"history": [["Where is it?"]]})


def test_a_turn_s_loss_is_its_weight_and_another_s_mask_refuses_the_row(tmp_path: Path) -> None:
    turns = [ASK, SAY | {"loss": False}, ASK, SAY | {"loss_scale": 0.5}]
    assert [m.weight for m in one(tmp_path, {"messages": turns}).messages] == [None, 0.0, None, 0.5]
    assert "'mask', which is not read" in why(tmp_path, {"messages": [ASK, SAY | {"mask": True}]})
    assert "'tools', which is not read" in why(tmp_path, {"messages": [ASK | {"tools": [{"name": "f"}]}, SAY]})


def test_thoughts_that_were_cut_off_are_no_answer(tmp_path: Path) -> None:
    assert "never closes it" in why(tmp_path, {"messages": [ASK, SAY | {"content": "<think>It was tired, so"}]})


HUMAN, GPT = {"from": "human", "value": "Where is it?"}, {"from": "gpt", "value": "At home."}


@pytest.mark.parametrize("word", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [HUMAN, GPT]}, {"messages": [ASK, SAY]}, WORD, {"query": "Where?", "response": "At home."},
        {"prompt": "Where is it?", "completion": "At home."},
        {"contents": [{"role": "user", "parts": [{"text": "?"}]}, {"role": "model", "parts": [{"text": "At home."}]}]},
    ],
)  # fmt: skip
def test_a_word_on_the_answer_is_one_in_every_layout_until_the_recipe_says_it_is_none(
    row: dict[str, Any], word: str, tmp_path: Path
) -> None:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row | {"id": f"{n}", word: n > 0}) + "\n" for n in range(4)))
    loaded = load(tmp_path / "r.jsonl", Data())
    assert [e.good for e in loaded.examples] == [False, True, True, True]
    with pytest.raises(RequestError, match="judged answers") as caught:
        prepare(Data(train=str(tmp_path / "r.jsonl")), 1)
    plain = caught.value.remedy.rpartition("data.format=")[2].split()[0]
    unjudged = load(tmp_path / "r.jsonl", Data(format=plain))
    assert unjudged.material == "answers"
    assert f"not used of r.jsonl: {word}" in unjudged.notes


def test_a_rejected_conversation_beside_messages_or_after_them_makes_a_pair(tmp_path: Path) -> None:
    bad = {"role": "assistant", "content": "Gone."}
    for row in (
        {"messages": [ASK, SAY], "rejected_messages": [ASK, bad]},
        {"messages": [ASK], "chosen": SAY, "rejected": bad},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Gone."}},
    ):
        example = one(tmp_path, row)
        assert [m.content for m in (*example.messages, *example.rejected)] == ["Where is it?", "At home.", "Gone."]
    assert "an answer already" in why(tmp_path, {"messages": [ASK, SAY], "chosen": "At home.", "rejected": "Gone."})


def test_thoughts_and_tools_in_columns_of_their_own_are_the_answer_s(tmp_path: Path) -> None:
    for row in (
        {"prompt": "Where is it?", "completion": "At home.", "reasoning": "It was tired."},
        WORD | {"thinking": "It was tired."},
        {"messages": [ASK, SAY], "reasoning_content": "It was tired."},
    ):
        loaded = read(tmp_path, row)
        assert loaded.examples[0].messages[-1].reasoning == "It was tired."
        assert not [line for line in loaded.notes if "not used" in line]
    functions = json.dumps([{"name": "find"}])
    assert one(tmp_path, WORD | {"tools": functions}).tools[0]["function"]["name"] == "find"
    assert "not used of r.jsonl: tools" in read(tmp_path, WORD | {"tools": "a hammer"}).notes
    assert one(tmp_path, {"messages": [ASK, SAY | {"reasoning_content": "\n\n"}]}).messages[-1].reasoning == ""


def test_an_answer_in_gpt_oss_channels_is_its_thoughts_and_its_answer(tmp_path: Path) -> None:
    text = "<|channel|>analysis<|message|>It was tired.<|end|><|start|>assistant<|channel|>final<|message|>At home."
    for row in ({"messages": [ASK, SAY | {"content": text}]}, {"prompt": "Where is it?", "completion": text}):
        last = one(tmp_path, row).messages[-1]
        assert (last.reasoning, last.content) == ("It was tired.", "At home.")
    call = "<|channel|>commentary to=functions.find<|message|>{}<|call|>"
    assert "gpt-oss' channels" in why(tmp_path, {"prompt": "?", "completion": call})


def test_calls_one_after_the_other_are_made_at_once(tmp_path: Path) -> None:
    calls = [{"from": "function_call", "value": json.dumps({"name": "find", "arguments": {"id": n}})} for n in (1, 2)]
    results = [{"from": "observation", "value": str(n)} for n in (1, 2)]
    example = one(tmp_path, {"conversations": [HUMAN, *calls, *results, GPT], "tools": [{"name": "find"}]})
    assert [len(m.tool_calls) for m in example.messages] == [0, 2, 0, 0, 0]


def test_nulls_that_a_table_puts_into_calls_for_the_keys_of_other_rows_are_left_out(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [
        {"messages": [ASK, {"role": "assistant", "content": None,
                            "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}],
         "tools": [{"function": {"name": name, "parameters": {"type": "object", "properties": properties}}}]}
        for name, arguments, properties in (
            ("find", {"id": 7}, {"id": {"type": "integer"}}), ("move", {"to": "sea"}, {"to": {"type": "string"}}))
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(str(tmp_path / "r.parquet"))
    loaded = load(tmp_path / "r.parquet", Data())
    assert [e.messages[-1].tool_calls[0].arguments for e in loaded.examples] == ['{"id": 7}', '{"to": "sea"}']
    tools = [list(e.tools[0]["function"]["parameters"]["properties"]) for e in loaded.examples]
    assert tools == [["id"], ["to"]]
    assert any("2 rows of r.parquet have nulls within calls or tools" in line for line in loaded.notes)


def test_turns_in_a_mapped_column_are_turns_and_no_json(tmp_path: Path) -> None:
    row = {"asked": [{"role": "system", "content": "Be short."}, ASK], "solution": "At home."}
    example = read(tmp_path, row, columns=Columns(prompt="asked", answer="solution")).examples[0]
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "Be short."), ("user", "Where is it?"), ("assistant", "At home."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": [1], "labels": [1]}, "another tokenizer's work"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "labels of single steps"),
        ({"prompt": "a", "completions": ["b", "c"]}, "write a row for each"),
        ({"Question": "a", "Long_CoT": "b", "Response": "c"}, r'answer: "<think>\n{Long_CoT}\n</think>\n\n{Response}"'),
        ({"system": "a", "chat": "USER: b ASSISTANT: c"}, "data.format=chat_text data.columns.answer=chat"),
    ],
)  # fmt: skip
def test_no_remedy_leads_to_learning_the_wrong_thing(row: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, row)
    assert words in caught.value.remedy
