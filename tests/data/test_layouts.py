"""Conversations as teams keep them: every field of a row is learned, read as context, or named as not used."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from row_files import one, read
from workbench.data.chat import load_tokenizer, render
from workbench.data.load import load
from workbench.data.prepare import describe, prepare
from workbench.errors import RequestError
from workbench.recipe import Columns, Data
from workbench.records import Message, ToolCall, message_dicts

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"id": 7}'}}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}
ASK, SAY = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "At home."}
CALLED = (ToolCall("find", '{"id": 7}', "c1"),)


WITH_TOOLS: dict[str, Any] = {
    "openai": {
        "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "c1", "content": "home"}, SAY],
        "tools": [TOOL],
    },
    "openai's older functions": {
        "messages": [ASK, {"role": "assistant", "content": None, "function_call": CALL["function"]},
                     {"role": "function", "name": "find", "content": "home"}, SAY],
        "functions": [TOOL["function"]],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Where is it?"},
                          {"from": "function_call", "value": '{"name": "find", "arguments": {"id": 7}}'},
                          {"from": "observation", "value": "home"}, {"from": "gpt", "value": "At home."}],
        "tools": json.dumps([TOOL["function"]]),
    },
    "claude": {
        "messages": [
            ASK,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "find", "input": {"id": 7}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "home"}]},
            SAY,
        ],
        "tools": [{"name": "find", "description": "Finds.", "input_schema": {"type": "object"}}],
    },
    "gemini": {
        "contents": [{"role": "user", "parts": [{"text": "Where is it?"}]},
                     {"role": "model", "parts": [{"functionCall": {"name": "find", "args": {"id": 7}}}]},
                     {"role": "user", "parts": [{"functionResponse": {"name": "find", "response": "home"}}]},
                     {"role": "model", "parts": [{"text": "At home."}]}],
        "tools": [{"functionDeclarations": [TOOL["function"] | {"parameters": {"type": "OBJECT"}}]}],
    },
    "hermes": {
        "conversations": [
            {"from": "system", "value": f"You call functions. <tools>\n{json.dumps(TOOL)}\n</tools>"},
            {"from": "human", "value": "Where is it?"},
            {"from": "gpt", "value": "<tool_call>\n{'name': 'find', 'arguments': {'id': 7}}\n</tool_call>"},
            {"from": "tool", "value": "<tool_response>\nhome\n</tool_response>"}, {"from": "gpt", "value": "At home."},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", WITH_TOOLS)
def test_calls_results_and_tools_are_read_from_every_layout(layout: str, tmp_path: Path) -> None:
    example = one(tmp_path, WITH_TOOLS[layout])
    turns = [m for m in example.messages if m.role != "system"]
    assert [m.role for m in turns] == ["user", "assistant", "tool", "assistant"]
    assert [(call.name, json.loads(call.arguments)) for call in turns[1].tool_calls] == [("find", {"id": 7})]
    assert (turns[1].content, turns[2].content.strip('"'), example.answer) == ("", "home", "At home.")
    assert [tool["function"]["name"] for tool in example.tools] == ["find"]
    assert example.tools[0]["function"]["parameters"]["type"] == "object"
    if layout.startswith("openai"):
        assert turns[2].name == "find"
    if layout == "hermes":
        assert example.messages[0].content == "You call functions."


CALLS = [{"name": "find", "arguments": {"id": 7}}, {"name": "find", "arguments": {"id": 8}}]
HERMES_CALLS = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in CALLS)


@pytest.mark.parametrize("answers", [
    json.dumps(CALLS), CALLS, f"```json\n{json.dumps(CALLS, indent=2)}\n```", HERMES_CALLS,
    json.dumps([{"type": "function", "function": call} for call in CALLS]),
], ids=["text", "list", "fenced", "hermes", "openai"])  # fmt: skip
def test_calls_written_as_an_answer_s_text_beside_tools_are_calls_aloud(answers: Any, tmp_path: Path) -> None:
    mapped = {"columns": Columns(prompt="query", answer="answers")}
    tools = json.dumps([TOOL["function"]])
    row = {"query": "Where?", "answers": answers, "tools": tools}
    loaded = read(tmp_path, row, row | {"query": "And now?"}, **mapped)  # of one row alone the list might be the rows
    example = loaded.examples[0]
    assert example.messages[-1] == Message(
        "assistant", "", tool_calls=tuple(ToolCall("find", json.dumps({"id": n})) for n in (7, 8))
    )
    assert any("2 answers of r.jsonl are calls written as text beside `tools`" in line for line in loaded.notes)
    text = answers if isinstance(answers, str) else json.dumps(answers)
    for row in (
        {"prompt": "Where?", "completion": text},
        {"instruction": "Where?", "output": text},
        {"messages": [ASK, SAY | {"content": text}]},
        {"prompt": "Where?", "chosen": text, "rejected": "At home."},
    ):
        example = one(tmp_path, row | {"tools": tools})
        assert [call.name for call in example.messages[-1].tool_calls] == ["find", "find"]
    # Without tools it is the text that was wanted.
    assert one(tmp_path, {"prompt": "Where?", "completion": text}).answer == text


def test_parameters_by_their_names_alone_are_written_as_the_schema_that_templates_look_for(tmp_path: Path) -> None:
    flat = {
        "city": {"description": "Where.", "type": "str"}, "days": {"type": "int, optional", "description": "How many."},
        "tags": {"type": "List[str]", "default": "x"}, "near": {"type": "Optional[float]"}, "how": {"type": "Weather"},
    }  # fmt: skip
    loaded = read(
        tmp_path, {"prompt": "?", "completion": "a", "tools": json.dumps([{"name": "look", "parameters": flat}])}
    )
    assert loaded.examples[0].tools[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"description": "Where.", "type": "string"},
            "days": {"type": "integer", "description": "How many."},
            "tags": {"type": "array", "default": "x", "items": {"type": "string"}}, "near": {"type": "number"},
            "how": {"type": "Weather"},
        },
        "required": ["city", "how"],
    }  # fmt: skip
    assert any("1 tools of r.jsonl have parameters that are no JSON Schema: written as one" in n for n in loaded.notes)
    for schema in ({"type": "object", "properties": {"type": {"type": "string"}}}, {"type": "object"}, {"$ref": "#/x"}):
        tools = [{"name": "look", "parameters": schema}]
        loaded = read(tmp_path, {"prompt": "?", "completion": "a", "tools": tools})
        assert loaded.examples[0].tools[0]["function"]["parameters"] == schema
        assert not any("JSON Schema" in line for line in loaded.notes)


def test_what_only_looks_like_calls_stays_text_aloud_and_an_empty_list_of_them_is_refused(tmp_path: Path) -> None:
    tools = {"tools": [TOOL]}
    other = json.dumps({"name": "Ann", "parameters": {"age": 7}})
    loaded = read(tmp_path, {"prompt": "Who?", "completion": other} | tools)
    assert loaded.examples[0].answer == other
    assert any(
        "look like calls of functions that are none of their `tools`" in line and "'Ann'" in line
        for line in loaded.notes
    )
    for text in ('{"name": "find"}', "[1, 2]", "{broken", "find(id=7)"):
        assert one(tmp_path, {"prompt": "Who?", "completion": text} | tools).answer == text
    [bad] = read(tmp_path, {"prompt": "Who?", "completion": "[]"} | tools).bad
    assert "an empty list of calls" in bad.reason
    with pytest.raises(RequestError) as caught:
        read(tmp_path, *[{"query": "Where?", "answers": CALLS, "tools": [TOOL]}] * 2)
    assert "columns: {prompt: query, answer: answers}" in caught.value.remedy
    assert "calls of the tools in answers, a JSON list, are read as calls" in caught.value.remedy


def test_segments_of_a_text_without_a_template_are_refused_with_the_way_out(tmp_path: Path) -> None:
    segments = [{"label": False, "text": "<s>Hi\n"}, {"label": True, "text": "Hello!</s>"}]
    for beside in ({}, {"source": "web"}):
        with pytest.raises(RequestError) as caught:
            read(tmp_path, *[{"segments": segments} | beside] * 2)
        assert "give its turns as `messages`, with weight: 0" in caught.value.remedy


def test_roles_are_known_in_any_capitals_and_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Where"}, {"type": "text", "text": "is it?"}]
    turns = [
        {"role": "Developer", "content": "Be short."},
        {"role": "USER", "content": parts},
        SAY | {"role": "Assistant"},
    ]
    assert [(m.role, m.content) for m in one(tmp_path, {"messages": turns}).messages] == [
        ("system", "Be short."), ("user", "Where\nis it?"), ("assistant", "At home."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAY]}, "'image_url'"),
        ({"messages": [ASK, SAY], "images": ["a.png"]}, "it has 'images'"),
        ({"messages": [ASK, SAY | {"refusal": "No."}]}, "'refusal', which is not read"),
        ({"messages": [ASK | {"weight": 1}, SAY]}, "only the assistant's turns are"),
        ({"messages": [ASK, SAY | {"weight": -1}]}, "not a number of 0 or more"),
        ({"messages": [ASK, SAY | {"weight": 0}]}, "every turn of the assistant has weight 0"),
        ({"messages": [ASK, SAY], "weight": "heavy"}, "'heavy', not a number"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "names no function"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
         "not JSON"),
        ({"messages": [{"role": "tool", "content": "x"}, ASK, SAY]}, "nothing was called before it"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"chosen": "b", "rejected": "c"}, "have no prompt"),
    ],
)  # fmt: skip
def test_what_would_change_what_is_learned_and_cannot_be_read_refuses_its_row(
    row: Any, reason: str, tmp_path: Path
) -> None:
    [bad] = read(tmp_path, row).bad
    assert reason in bad.reason


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "At home.", "reasoning_content": "It was tired."},
        {"role": "assistant", "content": "<think>\nIt was tired.\n</think>\n\nAt home."},
        {"role": "assistant", "content": "It was tired.\n</think>\n\nAt home."},
    ],
)
def test_thoughts_are_parted_from_the_answer_that_is_scored(turn: Any, tmp_path: Path) -> None:
    example = one(tmp_path, {"messages": [ASK, turn]})
    assert example.messages[-1] == Message("assistant", "At home.", "It was tired.")
    assert one(tmp_path, {"prompt": "?", "completion": "say </think> or not"}).answer == "say </think> or not"


def test_turns_and_rows_bring_their_own_weights(tmp_path: Path) -> None:
    turns = [ASK, SAY | {"weight": 0}, ASK, SAY | {"train": True}]
    loaded = read(tmp_path, {"messages": turns, "weight": 2}, {"messages": [ASK, SAY], "weight": 0.5})
    assert [m.weight for m in loaded.examples[0].messages] == [None, 0.0, None, 1.0]
    assert [e.weight for e in loaded.examples] == [2.0, 0.5]
    assert "the rows of r.jsonl are weighed, from 0.5 to 2" in loaded.notes
    assert one(tmp_path, {"q": "a", "a": "b", "w": 3}, columns=Columns(prompt="q", answer="a", weight="w")).weight == 3
    # In a table with columns of any name, `weight` may be a parcel's.
    table = read(tmp_path, {"q": "a", "a": "b", "weight": 3}, columns=Columns(prompt="q", answer="a"))
    assert table.examples[0].weight == 1
    assert "not used of r.jsonl: weight" in table.notes


PAIR = {
    "with a prompt": {"prompt": "Where is it?", "chosen": "At home.", "rejected": "No idea."},
    "with turns": {"prompt": [ASK], "chosen": [SAY], "rejected": [SAY | {"content": "No idea."}]},
    "whole conversations": {"chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "No idea."}]},
    "whole beside a prompt": {"prompt": "Where is it?", "chosen": [ASK, SAY],
                              "rejected": [ASK, SAY | {"content": "No idea."}]},
    "openai": {"input": {"messages": [ASK], "tools": []}, "preferred_output": [SAY],
               "non_preferred_output": [SAY | {"content": "No idea."}]},
}  # fmt: skip


@pytest.mark.parametrize("form", PAIR)
def test_a_pair_is_the_chosen_conversation_with_the_rejected_ending_beside_it(form: str, tmp_path: Path) -> None:
    loaded = read(tmp_path, PAIR[form])
    [example] = loaded.examples
    assert example.messages == (Message("user", "Where is it?"), Message("assistant", "At home."))
    assert example.rejected == (Message("assistant", "No idea."),)
    assert loaded.material == "pairs"


def test_answers_alone_are_never_learned_from_pairs_or_judged_rows_unless_the_recipe_says_which(tmp_path: Path) -> None:
    judged = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(8)]
    loaded = read(tmp_path, *judged)
    assert (loaded.format, loaded.material) == ("kto", "judged answers")
    assert [e.good for e in loaded.examples] == [i % 2 == 0 for i in range(8)]
    source = f"file:{tmp_path / 'r.jsonl'}"
    with pytest.raises(RequestError, match="learns from answers") as caught:
        prepare(Data(train=source), 1)
    assert "data.format=chosen learns the answers that were judged good" in caught.value.remedy
    good = load(tmp_path / "r.jsonl", Data(format="chosen"))
    assert [e.answer for e in good.examples] == ["a0", "a2", "a4", "a6"]
    assert any("4 rows whose answer was judged bad are left out" in line for line in good.notes)
    chosen = read(tmp_path, PAIR["with a prompt"], format="chosen")
    assert (chosen.material, chosen.examples[0].answer, chosen.examples[0].rejected) == ("answers", "At home.", ())


def test_one_column_of_text_is_never_its_own_answer(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, {"text": "A long contract."})
    assert "no text is its own answer" in caught.value.remedy
    with pytest.raises(RequestError) as caught:
        read(tmp_path, {"text": "<|im_start|>user\nHi<|im_end|>"})
    assert "give their turns as `messages`" in caught.value.remedy
    loaded = read(tmp_path, {"text": "A long contract."}, format="text", system="Be short.")
    assert (loaded.material, loaded.examples[0].messages) == ("text", (Message("assistant", "A long contract."),))


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (1.5, "1.5"), (True, "true"), ({"a": "ü"}, '{"a": "ü"}'), (["x"], '["x"]')]
)
def test_a_label_that_is_no_text_is_taken_as_json_writes_it_aloud(value: Any, text: str, tmp_path: Path) -> None:
    loaded = read(tmp_path, {"q": "?", "a": value}, columns=Columns(prompt="q", answer="a"))
    assert loaded.examples[0].answer == text
    assert any("taken as JSON writes them" in line for line in loaded.notes)


def test_a_class_stored_as_a_number_comes_as_its_name_from_parquet(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"q": Value("string"), "a": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"q": ["x", "y"], "a": [1, 0]}, features=features).to_parquet(str(tmp_path / "r.parquet"))
    loaded = load(tmp_path / "r.parquet", Data(columns=Columns(prompt="q", answer="a")))
    assert [e.answer for e in loaded.examples] == ["yes", "no"]


def test_prompts_and_answers_are_made_of_several_columns(tmp_path: Path) -> None:
    row = {"title": "Lamp", "text": "It broke.", "kind": "claim", "stars": 1}
    loaded = read(tmp_path, row, prompt="{title}: {text} ({{x}})", answer='{"kind": "{kind}", "stars": {stars}}')
    assert loaded.examples[0].text == "Lamp: It broke. ({x})"
    assert loaded.examples[0].answer == '{"kind": "claim", "stars": 1}'
    assert [line for line in loaded.notes if "not used" in line] == []
    [bad] = read(tmp_path, row, {"kind": "x", "stars": 2}, prompt="{title} {text}", answer="{kind}").bad
    assert "no title and no text" in bad.reason


@pytest.mark.parametrize(
    ("prompt", "words", "remedy"),
    [
        ("{titel}", "no column 'titel'", "did you mean 'title'?"),
        ("{{title}}", "a column is written {title}", "one pair"),
        ("Classify.", "it names no column", "{title}"),
    ],
)
def test_a_template_is_checked_against_the_columns(prompt: str, words: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, {"title": "Lamp", "kind": "x"}, prompt=prompt, columns=Columns(answer="kind"))
    assert words in caught.value.what
    assert remedy in caught.value.remedy
    assert caught.value.where == "data.prompt"


def test_plain_rows_keep_their_digest_and_what_else_is_learned_changes_it(tmp_path: Path) -> None:
    plain = one(tmp_path, {"messages": [ASK, SAY], "id": "a"})
    from workbench.records import digest

    whole = describe([plain], "train", "r", Data())["digest"]
    assert whole == digest([["a", message_dicts(plain.messages)]], 32)
    others = [
        {"messages": [ASK, SAY | {"weight": 0.5}]}, {"messages": [ASK, SAY], "weight": 2},
        {"messages": [ASK, SAY], "tools": [TOOL]}, {"prompt": [ASK], "chosen": [SAY], "rejected": "No."},
        {"prompt": [ASK], "completion": [SAY], "label": True}, {"prompt": [ASK], "completion": [SAY], "label": False},
    ]  # fmt: skip
    digests = {describe([one(tmp_path, row | {"id": "a"})], "train", "r", Data())["digest"] for row in others}
    assert len(digests | {whole}) == len(others) + 1


# A hundred rows of each layout, and generated ones: no character is lost.

UNSEEN = ("Cs", "Cc", "Zs", "Zl", "Zp", "Cf", "Cn", "Co")
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=UNSEEN), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and "<" not in text
)
NAMES = st.sampled_from(["find_order", "weather", "send"])
ARGUMENTS = st.dictionaries(st.sampled_from(["id", "town", "when"]), WORDS | st.integers() | st.booleans(), max_size=3)
EXTRA = st.dictionaries(st.sampled_from(["note", "timestamp", "lang"]), WORDS, max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(WORDS)} | draw(EXTRA))
        if draw(st.booleans()):
            call = {
                "id": "c1",
                "type": "function",
                "function": {"name": draw(NAMES), "arguments": json.dumps(draw(ARGUMENTS))},
            }
            turns.append({"role": "assistant", "content": draw(st.none() | WORDS), "tool_calls": [call]})
            turns.append({"role": "tool", "tool_call_id": "c1", "content": draw(WORDS)})
        turns.append({"role": "assistant", "content": draw(WORDS)} | draw(EXTRA))
        if draw(st.booleans()):
            turns[-1]["reasoning_content"] = draw(WORDS)
        if draw(st.booleans()):
            turns[-1]["weight"] = draw(st.sampled_from([0, 1, 0.5]))
    turns[-1].pop("weight", None)
    tools = [
        {"type": "function", "function": {"name": name, "description": draw(WORDS)}} for name in draw(st.sets(NAMES))
    ]
    return {"messages": turns, "tools": tools} | draw(EXTRA)


def texts_in(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts_in(inner)]
    return [text for inner in value for text in texts_in(inner)] if isinstance(value, list) else [str(value)]


@settings(max_examples=100, deadline=None)
@given(row=conversations(), train_on=st.sampled_from(["last_answer", "all_answers"]))
def test_every_character_of_every_field_is_trained_context_or_named_as_unused(
    row: dict[str, Any], train_on: str, chatml: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded = read(tmp_path_factory.mktemp("rows"), row)
    [example] = loaded.examples
    unused = next((line.partition(": ")[2].split(", ") for line in loaded.notes if line.startswith("not used")), [])
    rendered = render(example, chatml, train_on=train_on, max_length=100_000)
    text = chatml.decode(list(rendered.input_ids))
    trained = chatml.decode([t for t, on in zip(rendered.input_ids, rendered.trained, strict=True) if on])
    for name in row.keys() - {"messages", "tools"}:
        assert name in unused
    for tool in row["tools"]:
        assert all(json.dumps(word, ensure_ascii=False)[1:-1] in text for word in texts_in(tool))
    last_user = max(i for i, turn in enumerate(row["messages"]) if turn["role"] == "user")
    for number, turn in enumerate(row["messages"]):
        for name in turn.keys() & {"note", "timestamp", "lang"}:
            assert f"messages[].{name}" in unused
        words = [turn.get("content") or "", turn.get("reasoning_content") or ""]
        for call in turn.get("tool_calls", []):
            arguments = json.loads(call["function"]["arguments"])
            words += [call["function"]["name"]]
            words += [json.dumps(v, ensure_ascii=False) for v in arguments.values()]
        assert all(word in text for word in words)
        weight = turn.get("weight")
        on_the_way = number > last_user and "tool_calls" in turn
        learned = turn["role"] == "assistant" and (
            weight > 0 if weight is not None
            else train_on == "all_answers" or on_the_way or number == len(row["messages"]) - 1
        )  # fmt: skip
        if learned:
            assert all(word in trained for word in words)
            scales = {s for s, on in zip(rendered.scales, rendered.trained) if on} or {rendered.weight}
            assert (1.0 if weight is None else weight) in scales


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """A row with a column each for prompt and answer, and of what may stand beside them."""
    asks, says = draw(st.sampled_from([("prompt", "completion"), ("instruction", "output"), ("query", "response")]))
    row: dict[str, Any] = {asks: draw(WORDS), says: draw(WORDS)} | draw(EXTRA)
    thoughts = st.sampled_from(["reasoning_content", "reasoning", "thinking"])
    beside = [
        st.dictionaries(thoughts, WORDS, max_size=2),
        st.fixed_dictionaries({}, optional={"system": WORDS}),
        st.fixed_dictionaries({}, optional={"tools": st.sampled_from([json.dumps([TOOL]), [TOOL]])}),
        st.fixed_dictionaries({}, optional={"split": st.sampled_from(["train", "en-de"])}),
    ]
    for more in beside:
        row |= draw(more)
    if asks != "prompt":
        row |= draw(st.fixed_dictionaries({}, optional={"history": st.lists(st.lists(WORDS, min_size=2, max_size=2))}))
    return row


@settings(max_examples=60, deadline=None)
@given(row=tables())
def test_every_character_of_every_column_is_trained_context_a_split_or_named_as_unused(
    row: dict[str, Any], chatml: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded = read(tmp_path_factory.mktemp("rows"), row)
    [example] = loaded.examples
    unused = next((line.partition(": ")[2].split(", ") for line in loaded.notes if line.startswith("not used")), [])
    rendered = render(example, chatml, train_on="last_answer", max_length=100_000)
    text = chatml.decode(list(rendered.input_ids))
    trained = chatml.decode([t for t, on in zip(rendered.input_ids, rendered.trained, strict=True) if on])
    for name, value in row.items():
        words = ["find"] if value in ([TOOL], json.dumps([TOOL])) else texts_in(value)
        if name in unused or (name == "split" and value == "train"):
            continue
        assert all(word in text for word in words), name
        if name in ("completion", "output", "response", "reasoning_content", "reasoning", "thinking"):
            assert all(word in trained for word in words), name
    assert not {"prompt", "completion", "instruction", "output", "query", "response", "system", "history"} & {*unused}
    assert len([name for name in unused if name in row and name in ("reasoning_content", "reasoning", "thinking")]) <= 1


@pytest.fixture(scope="module")
def chatml(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model, "chatml", light=True)


@pytest.mark.parametrize("layout", [*WITH_TOOLS, "alpaca", "thoughts", "weights"])
def test_a_hundred_rows_of_a_layout_train_the_answers_and_calls_and_nothing_else(
    layout: str, chatml: Any, tmp_path: Path
) -> None:
    others: dict[str, Any] = {
        "alpaca": {"instruction": "Where is it?", "input": "A cat.", "output": "At home."},
        "thoughts": {"messages": [ASK, SAY | {"reasoning_content": "It was tired."}]},
        "weights": {"messages": [ASK, SAY | {"weight": 0, "content": "Go away."}, ASK, SAY | {"weight": 1}]},
    }
    row = json.dumps(WITH_TOOLS.get(layout) or others[layout])
    loaded = read(tmp_path, *(json.loads(row.replace("Where is it?", f"Where is number {i}?")) for i in range(100)))
    assert len(loaded.examples) == 100
    call = (
        '<tool_call>\n{"name": "find", "arguments": {"id": 7}}\n</tool_call><|im_end|>' if layout in WITH_TOOLS else ""
    )
    thought = "<think>\nIt was tired.\n</think>\n\n" if layout == "thoughts" else ""
    for example in loaded.examples:
        rendered = render(example, chatml, train_on="last_answer", max_length=4096)
        learned = chatml.decode([t for t, on in zip(rendered.input_ids, rendered.trained, strict=True) if on])
        assert learned == f"{call}{thought}At home.<|im_end|>"


def test_the_documents_table_lists_the_layouts_that_can_be_read() -> None:
    text = (Path(__file__).parents[2] / "configs" / "data" / "README.md").read_text(encoding="utf-8")
    table = text.partition("| layout |")[2].partition("\n\n")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    choices = next(f.metadata["choices"] for f in fields(Data) if f.name == "format")
    assert sorted(listed) == sorted(set(choices) - {"auto"})
