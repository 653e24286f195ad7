"""Teachers that think before they speak, talk around their answer, or decline in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from odd_teacher import completion, is_probe, odd_teacher
from teacher_project import project, questions
from teacher_server import teacher_server
from workbench.data.prepare import Asked, Splits
from workbench.dialects import parted
from workbench.recipe import Recipe, Teacher
from workbench.records import Example, Message, ToolCall
from workbench.runs import Run
from workbench.stages.prompts import labelled
from workbench.teacher.replies import MalformedError, parse

THOUGHT = "The words are about money."
LAYOUTS: dict[str, dict[str, Any]] = {
    "think marks": completion(f"<think>\n{THOUGHT}\n</think>\n\nbilling"),
    "a closing mark alone": completion(f"{THOUGHT}\n</think>\n\nbilling"),
    "reasoning_content": completion("billing", reasoning_content=THOUGHT),
    "reasoning": completion("billing", reasoning=THOUGHT),
    "parts": completion(
        [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"type": "text", "text": "billing"}]
    ),
    "channels": completion(
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>billing<|return|>"
    ),
    "channels without their marks": completion(f"analysis{THOUGHT}assistantfinalbilling"),
    "brackets": completion(f"[THINK]{THOUGHT}[/THINK]billing"),
}


def test_thoughts_are_parted_from_the_answer_and_kept_beside_it(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Any:
        layout = next((name for name in LAYOUTS if f"({name})" in json.dumps(body["messages"])), None)
        return LAYOUTS[layout] if layout else completion("yes")

    prompts = [f"Where does it go? ({name})" for name in LAYOUTS]
    with odd_teacher(reply) as server:
        made = project(tmp_path, prompts, server.url)
        done = made.label()
        assert done.returncode == 0, done.stderr
        lines = [line for line in made.lines("labels") if line["id"].startswith("row-")]
        assert len(lines) == len(LAYOUTS)
        assert {(line["answer"], line["reasoning"]) for line in lines} == {("billing", THOUGHT)}
        count = len(server.bodies)
        assert made.label("fresh=true").returncode == 0
        again = [line for line in made.lines("labels") if line["id"].startswith("row-")]
        assert {line["reasoning"] for line in again} == {THOUGHT}, "from the ledger too"
        assert len(server.bodies) == count


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Use <think> tags, then </think>.", "Use <think> tags, then </think>."),
        ("plain", "plain"),
        ("<think>never ended", ""),
        ("<think></think>done", "done"),
        ("analysis of the final terms", "analysis of the final terms"),
        ("<|channel|>final<|message|>only this", "only this"),
        ("<think>\na </think> b", "b"),
    ],
)
def test_only_what_stands_before_the_answer_is_a_thought(text: str, answer: str) -> None:
    assert parted(text).answer == answer


def test_a_thinking_teacher_is_booked_to_the_token_and_its_thoughts_are_no_answer(tmp_path: Path) -> None:
    labels = {"labels": ["yes", "no"]}
    with teacher_server(answer="json", reasoning_tokens=40, thoughts_shown=True) as server:
        made = project(tmp_path, questions(20), server.url + "/v1", max_new_tokens=128, **labels)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert {line["answer"] for line in made.lines("labels")} <= {"yes", "no"}
        assert all(line["reasoning"].startswith("Let me think") for line in made.lines("labels"))
        totals = server.totals()
        spent, thought = made.ledger("SELECT SUM(cost), SUM(tokens_reasoning) FROM attempts")[0]
        assert spent / 1e9 == pytest.approx(totals["cost_usd"], rel=1e-9)
        assert thought == totals["reasoning_tokens"] > 0
        assert made.ledger("SELECT COUNT(*) FROM attempts WHERE assumed = 1") == [(0,)]


def thinks_for(tokens: int) -> Any:
    """A teacher whose thoughts take so many tokens of the limit."""

    def reply(body: dict[str, Any]) -> Any:
        limit = body["max_tokens"]
        if limit < tokens:
            usage = {"prompt_tokens": 20, "completion_tokens": limit}
            return completion("", "length", usage, reasoning_content="Hm, let me see")
        schema = is_probe(body) and "response_format" in body
        return completion('{"word": "yes"}' if schema else "yes", usage={"prompt_tokens": 20, "completion_tokens": 65})

    return reply


def test_the_probe_asks_within_the_recipe_s_own_limit(tmp_path: Path) -> None:
    with odd_teacher(thinks_for(60)) as server:
        made = project(tmp_path, questions(3), server.url, max_new_tokens=256)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert {body["max_tokens"] for body in server.bodies} == {256}
        assert "no JSON schema" not in done.stderr


def test_a_limit_that_thoughts_use_up_is_named_after_one_question(tmp_path: Path) -> None:
    with odd_teacher(thinks_for(500)) as server:
        done = project(tmp_path, questions(30), server.url).label()
        assert done.returncode == 2
        assert "teacher.max_new_tokens" in done.stderr
        assert len(server.bodies) == 1


def test_rows_whose_limit_is_eaten_one_after_the_other_stop_the_stage(tmp_path: Path) -> None:
    eaten = completion("<think>and so on", "length", {"prompt_tokens": 20, "completion_tokens": 64})

    def reply(body: dict[str, Any]) -> Any:
        return completion("yes") if is_probe(body) else eaten

    with odd_teacher(reply) as server:
        made = project(tmp_path, questions(100), server.url, concurrency=2)
        done = made.label()
        assert done.returncode == 2, done.stderr
        assert "teacher.max_new_tokens" in done.stderr
        assert len(server.rows) <= 12
        assert {line["reason"] for line in made.lines("rejected")} == {"truncated"}


DECLINING = (
    "I'm sorry, but I can't help with that request.", "I cannot assist with this.", "Es tut mir leid, aber dabei kann "
    "ich nicht helfen.", "Lo siento, pero no puedo ayudar con eso.", "Je ne peux pas répondre à cette demande.",
)  # fmt: skip


def test_refusals_in_words_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Any:
        text = json.dumps(body["messages"])
        return completion(next((w for n, w in enumerate(DECLINING) if f"item {n} of" in text), "It is in stock."))

    with odd_teacher(reply) as server:
        made = project(tmp_path, questions(20), server.url)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert f"{len(DECLINING)} refusal" in done.stderr
        assert [(line["id"], line["reason"]) for line in made.lines("rejected")] == [
            (f"row-{n}", "refusal") for n in range(len(DECLINING))
        ]
        assert all(repr(words)[1:40] in line["details"] for words, line in zip(DECLINING, made.lines("rejected")))


def test_many_answers_that_are_all_the_same_are_worth_a_line(tmp_path: Path) -> None:
    with odd_teacher(lambda body: completion("It is in stock.")) as server:
        done = project(tmp_path, questions(12), server.url).label()
        assert "answers are the same: 'It is in stock.'" in done.stderr


LABELS = Teacher(labels=["billing", "delivery"])
FIELDS = Teacher(fields={"kind": ["Lease", "Sale"], "party": []})


@pytest.mark.parametrize(
    ("teacher", "text", "answer"),
    [
        (LABELS, 'Sure! Here it is:\n\n```json\n{"label": "billing"}\n```\nTell me if you need more.', "billing"),
        (LABELS, 'I would say {"label": "Billing"} here.', "billing"),
        (LABELS, "Billing.", "billing"),
        (LABELS, '{"label": "billing"}\n{"label": "billing"}', "billing"),
        (FIELDS, 'So: {"kind": "lease", "party": "A {b} c"} {not json}', '{"kind": "Lease", "party": "A {b} c"}'),
    ],
)  # fmt: skip
def test_the_one_json_object_of_a_text_is_read(teacher: Teacher, text: str, answer: str) -> None:
    assert parse(teacher, text).answer == answer


@pytest.mark.parametrize(
    "text",
    [
        'either {"label": "billing"} or {"label": "delivery"}', '{"label": "billing", "label": "delivery"}',
        '{"label": "billing", "more": 1}', "billing or delivery", "[]", "{" * 100_000,
    ],
)  # fmt: skip
def test_what_could_be_two_answers_is_none(text: str) -> None:
    with pytest.raises(MalformedError):
        parse(LABELS, text)


def test_thoughts_and_calls_come_with_the_row_that_is_learned_where_they_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()
    line = {"id": "r", "answer": "", "rationale": "", "agreement": 1.0, "reasoning": THOUGHT, "others": [],
            "tool_calls": [{"name": "weather", "arguments": '{"place": "Oslo"}', "id": "c0"}]}  # fmt: skip
    (tmp_path / "label" / "labels.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "label" / "summary.json").write_text('{"teacher": "odd-1"}')
    row = Example("r", (Message("user", "And Oslo?"), Message("assistant", "")), where="rows:1")
    recipe = Recipe(name="mine", teacher=LABELS)
    recipe.data.privacy = "public"
    rows = Asked([row], Splits([], [], [], [], [], []), [], [])
    for wanted in (False, True):
        recipe.teacher.thoughts = wanted
        (learned,) = labelled(recipe, Run(tmp_path, "mine", "1234abcd"), rows).splits.train
        assert learned.messages[-1].tool_calls == (ToolCall("weather", '{"place": "Oslo"}', "c0"),)
        assert learned.messages[-1].reasoning == (THOUGHT if wanted else "")
