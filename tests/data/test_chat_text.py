"""Chats that a row holds as one text are read as their turns, aloud: a user's words are never learned as an answer."""

# ruff: noqa: E501  (a chat is read by its turns, not by its lines)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from row_files import one, read
from workbench.data.chat_text import chat_turns, way_of
from workbench.errors import RequestError
from workbench.recipe import Columns
from workbench.records import Message

ASK, SAY, MORE, END = "Where is it?", "At home.", "And now?", "Gone."
CHATS = {
    "ChatML": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    "At home.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\nGone.<|im_end|>\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nWhere is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nAt home.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "Gone.<|eot_id|>",
    "Gemma": "<bos><start_of_turn>user\nWhere is it?<end_of_turn>\n<start_of_turn>model\nAt home.<end_of_turn>\n"
    "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\nGone.<end_of_turn>\n",
    "[INST]": "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nWhere is it? [/INST] At home. </s><s>[INST] And now? [/INST] "
    "Gone. </s>",
    "<|user|>": "<|system|>\nBe short.</s>\n<|user|>\nWhere is it?</s>\n<|assistant|>\nAt home.</s>\n<|user|>\nAnd now?"
    "</s>\n<|assistant|>\nGone.</s>",
    "DeepSeek": "<｜begin▁of▁sentence｜>Be short.<｜User｜>Where is it?<｜Assistant｜>At home.<｜end▁of▁sentence｜><｜User｜>"
    "And now?<｜Assistant｜>Gone.<｜end▁of▁sentence｜>",
    "Human: and Assistant:": "\n\nHuman: Where is it?\n\nAssistant: At home.\n\nHuman: And now?\n\nAssistant: Gone.",
    "### Human:": "Be short.\n### Human: Where is it?### Assistant: At home.### Human: And now?### Assistant: Gone.",
    "### Instruction:": "Be short.\n\n### Instruction:\nWhere is it?\n\n### Input:\nA cat.\n\n### Response:\nGone.</s>",
    "USER: and ASSISTANT:": "Be short. USER: Where is it? ASSISTANT: At home.</s>USER: And now? ASSISTANT: Gone.</s>",
}  # fmt: skip


@pytest.mark.parametrize("way", CHATS)
def test_a_text_that_is_a_whole_chat_is_its_turns_and_how_it_was_written_is_said(way: str, tmp_path: Path) -> None:
    loaded = read(tmp_path, {"id": "a", "text": CHATS[way]})
    [example] = loaded.examples
    talk = [("user", ASK), ("assistant", SAY), ("user", MORE), ("assistant", END)]
    if way == "### Instruction:":
        talk = [("user", "Where is it?\n\nA cat."), ("assistant", END)]
    system = [("system", "Be short.")] if "Be short." in CHATS[way] else []
    assert [(m.role, m.content) for m in example.messages] == system + talk
    assert (loaded.format, loaded.material) == ("chat_text", "answers")
    assert f"1 texts of r.jsonl are chats as {way} writes them: read as turns" in loaded.notes


def test_pairs_of_whole_chats_part_where_their_answers_do(tmp_path: Path) -> None:
    talk = "\n\nHuman: Where is it?\n\nAssistant: At home.\n\nHuman: And now?\n\nAssistant:"
    loaded = read(tmp_path, {"chosen": f"{talk} Gone.", "rejected": f"{talk} No idea."})
    [example] = loaded.examples
    assert [m.content for m in example.messages] == [ASK, SAY, MORE, END]
    assert [m.content for m in example.rejected] == ["No idea."]
    assert loaded.material == "pairs"
    other = talk.replace("At home.", "At sea.")
    [bad] = read(tmp_path, {"chosen": f"{talk} Gone.", "rejected": f"{other} No idea."}).bad
    assert "part before the last answer" in bad.reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "\n\nHuman: Where is it?\n\nAssistant:", "chosen": " At home.", "rejected": " No idea."},
        {"prompt": "\n\nHuman: Where is it?\n\nAssistant:", "chosen": "\n\nHuman: Where is it?\n\nAssistant: At home.",
         "rejected": "\n\nHuman: Where is it?\n\nAssistant: No idea."},
        {"prompt": "<|im_start|>user\nWhere is it?<|im_end|>\n", "chosen": "At home.<|im_end|>", "rejected": "No idea."},
        {"prompt": "<s>[INST] Where is it? [/INST]", "chosen": "At home.</s>", "rejected": "No idea.</s>"},
    ],
)  # fmt: skip
def test_a_prompt_that_is_written_as_a_chat_is_its_turns_beside_either_answer(row: Any, tmp_path: Path) -> None:
    example = one(tmp_path, row)
    assert example.messages == (Message("user", ASK), Message("assistant", SAY))
    assert example.rejected == (Message("assistant", "No idea."),)


def test_a_prompt_with_headings_or_a_transcript_in_it_stays_as_it_is(tmp_path: Path) -> None:
    for prompt in (
        "### Instruction:\nWhere is it?\n\n### Response:\n",
        "Shorten this.\n\nHuman: Where is it?\n\nAssistant: At home.",
        "\n\nHuman: Where is it?\n\nAssistant: At home.",  # an answer is there already
        "The marks are [INST] and [/INST].",
    ):
        assert one(tmp_path, {"prompt": prompt, "completion": "ok"}).messages[0].content == prompt


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "two turns of the user follow each other"),
        ("<|im_start|>user\na<|im_end|>b<|im_start|>assistant\nc<|im_end|>", "text stands behind the <|im_end|>"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "the last turn is the user's"),
        ("\n\nHuman: a\n\nAssistant:", "the answer is missing"),
        ("<|im_start|>user\na<|im_end|><|im_start|>bard\nc<|im_end|><|im_start|>assistant\nd<|im_end|>", "the role 'bard'"),
        ("A contract.", "begins with no turn of a known layout"),
    ],
)  # fmt: skip
def test_a_chat_whose_marks_do_not_stand_as_they_should_refuses_its_row(text: str, reason: str, tmp_path: Path) -> None:
    [bad] = read(tmp_path, {"text": text}, format="chat_text").bad
    assert reason in bad.reason


def test_thoughts_calls_and_results_within_a_chat_are_read_as_elsewhere(tmp_path: Path) -> None:
    text = (
        "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "find", "arguments": {"id": 7}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nhome\n'
        "</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\nIt was tired.\n</think>\n\nAt home.<|im_end|>\n"
    )
    example = one(tmp_path, {"text": text, "tools": [{"name": "find"}]})
    assert [m.role for m in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[1].tool_calls[0].name == "find"
    assert example.messages[2].content == "home"
    assert example.messages[3] == Message("assistant", SAY, "It was tired.")


def test_texts_of_which_one_is_no_chat_or_that_have_answers_beside_them_are_not_guessed(tmp_path: Path) -> None:
    chat = {"text": CHATS["ChatML"]}
    with pytest.raises(RequestError) as caught:
        read(tmp_path, chat, {"text": "A contract."})
    assert "data.format=chat_text reads their turns" in caught.value.remedy
    with pytest.raises(RequestError) as caught:
        read(tmp_path, chat | {"label": "polite"})
    assert "data.format=chat_text reads their turns" in caught.value.remedy
    assert "{prompt: text, answer: label} learns label of the chat as a text" in caught.value.remedy
    with pytest.raises(RequestError) as caught:
        read(tmp_path, {"talk": CHATS["[INST]"]})
    assert "data.format=chat_text data.columns.answer=talk" in caught.value.remedy
    named = read(tmp_path, {"talk": CHATS["[INST]"]}, format="chat_text", columns=Columns(answer="talk"))
    assert named.examples[0].answer == END
    with pytest.raises(RequestError, match="no column 'text' with chats"):
        read(tmp_path, {"talk": CHATS["[INST]"]}, format="chat_text")


@pytest.mark.parametrize(
    ("row", "data"),
    [
        ({"prompt": "Talk.", "completion": "Yes.\n\nHuman: Why?\n\nAssistant: So."}, {}),
        ({"messages": [{"role": "user", "content": "Talk."},
                       {"role": "assistant", "content": "Yes.\n\nHuman: Why?\n\nAssistant: So."}]}, {}),
        ({"instruction": "Talk.", "output": "Yes.\n\nHuman: Why?"}, {}),
        ({"text": "\n\nHuman: Why?\n\nAssistant: So."}, {"format": "text"}),
        ({"q": "Talk.", "a": "Yes.\n\nHuman: Why?"}, {"columns": Columns(prompt="q", answer="a")}),
    ],
)  # fmt: skip
def test_a_user_s_turn_in_what_is_learned_is_said(row: Any, data: Any, tmp_path: Path) -> None:
    loaded = read(tmp_path, row, **data)
    assert any(line.startswith("1 answers or texts of r.jsonl hold 'Human:'") for line in loaded.notes), loaded.notes
    plain = {key: "Yes." if isinstance(value, str) else value for key, value in row.items() if key != "messages"}
    if plain:
        assert not [line for line in read(tmp_path, plain, **data).notes if "opens a user's turn" in line]


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>[]#:｜|"), min_size=1).filter(
    str.strip
)
WRITERS = {
    "ChatML": ("<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n{}<|im_end|>\n"),
    "Llama 3": ("<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
                "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>"),
    "Gemma": ("<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n{}<end_of_turn>\n"),
    "[INST]": ("<s>[INST] {} [/INST]", " {} </s>"),
    "<|user|>": ("<|user|>\n{}<|end|>\n", "<|assistant|>\n{}<|end|>\n"),
    "DeepSeek": ("<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>"),
    "Human: and Assistant:": ("\n\nHuman: {}", "\n\nAssistant: {}"),
    "### Human:": ("### Human: {}", "### Assistant: {}"),
    "### Instruction:": ("\n\n### Instruction:\n{}", "\n\n### Response:\n{}"),
    "USER: and ASSISTANT:": (" USER: {}", " ASSISTANT: {}</s>"),
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(way=st.sampled_from(sorted(WRITERS)), talk=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_every_character_of_every_turn_comes_back_from_every_way_of_writing(
    way: str, talk: list[tuple[str, str]]
) -> None:
    asks, says = WRITERS[way]
    text = "".join(asks.replace("{}", ask) + says.replace("{}", answer) for ask, answer in talk)
    known = way_of(text)
    assert known is not None
    assert known.name == way
    turns = [(turn["role"], turn["content"]) for turn in chat_turns(text, known)]
    assert turns == [turn for ask, answer in talk for turn in (("user", ask.strip()), ("assistant", answer.strip()))]
