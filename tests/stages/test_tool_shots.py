"""Examples shown before a question come with the functions that were offered to them."""

from __future__ import annotations

import json

from workbench.records import Example, Message, ToolCall
from workbench.stages.evaluate.arms import few_shot_prompt


def row(name: str, *, system: bool = False) -> Example:
    tool = {"type": "function", "function": {"name": name, "parameters": {}}}
    start = (Message("system", "Be brief."),) if system else ()
    call = Message("assistant", "", tool_calls=(ToolCall(name, "{}"),))
    return Example(name, (*start, Message("user", f"do {name}"), call), tools=(tool,))


def test_examples_with_other_functions_show_them_and_so_does_the_question() -> None:
    shown = few_shot_prompt(row("f", system=True), [row("g", system=True), row("h")])
    assert [m.role for m in shown] == ["system", "user", "assistant", "user", "assistant", "user"]
    for at, name in ((1, "g"), (3, "h"), (5, "f")):
        offered, _, request = shown[at].content.partition("\n\n")
        assert json.loads(offered.removeprefix("Functions: ")) == [{"name": name, "parameters": {}}]
        assert request == f"do {name}"
    assert shown[2].tool_calls == (ToolCall("g", "{}"),)


def test_examples_with_the_question_s_own_functions_are_plain_turns() -> None:
    shown = few_shot_prompt(row("f"), [row("f")])
    assert [m.content for m in shown] == ["do f", "", "do f"]
    assert few_shot_prompt(row("f"), []) == row("f").prompt
