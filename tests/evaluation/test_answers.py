"""Asking an arm: nothing is asked twice, nothing is lost to a kill, and the order is the items'."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.evaluation.answers import Prediction, ask_arm, read_predictions
from workbench.records import Answer, Example, Message


class Engine:
    """Answers each prompt by echoing it, the last prompt first; stops after `most` answers."""

    def __init__(self, most: int = 10_000):
        self.asked: list[str] = []
        self.most = most

    def __call__(self, prompts: Sequence[Sequence[Message]], max_new_tokens: int) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(prompts))):
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(prompts[index][-1].content)
            yield index, Answer(f"echo {prompts[index][-1].content}", "stop", 3, 2, 0.1)


def items(count: int) -> list[Example]:
    return [
        Example(f"row{i}", (Message("user", f"q{i}"), Message("assistant", f"a{i}")), group=f"g{i}")
        for i in range(count)
    ]


def ask(engine: Engine, rows: Sequence[Example], out: Path, **kwargs: object) -> list[Prediction]:
    options = {"arm_digest": "d1", "max_new_tokens": 8} | kwargs
    digest = str(options.pop("arm_digest"))
    return ask_arm("student", digest, engine, rows, [r.prompt for r in rows], out=out, **options)  # type: ignore[arg-type]


def test_answers_come_back_in_the_order_of_the_items_whatever_order_the_engine_takes(tmp_path: Path) -> None:
    found = ask(Engine(), items(5), tmp_path / "student.jsonl")
    assert [p.id for p in found] == [f"row{i}" for i in range(5)]
    assert [p.answer for p in found] == [f"echo q{i}" for i in range(5)]
    assert [p.expected for p in found] == [f"a{i}" for i in range(5)]
    assert read_predictions(tmp_path / "student.jsonl") == found


def test_a_killed_call_keeps_every_answer_it_had_and_asks_only_the_rest(tmp_path: Path) -> None:
    out, first, second = tmp_path / "student.jsonl", Engine(most=3), Engine()
    with pytest.raises(KeyboardInterrupt):
        ask(first, items(5), out)
    assert len(read_predictions(out)) == 3
    found = ask(second, items(5), out)
    assert sorted(first.asked + second.asked) == [f"q{i}" for i in range(5)]
    assert found == ask(Engine(), items(5), tmp_path / "undisturbed.jsonl")


def test_a_half_written_last_line_is_dropped_and_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "student.jsonl"
    whole = ask(Engine(), items(3), out)
    text = out.read_text()
    out.write_text(text[:-25])
    engine = Engine()
    assert ask(engine, items(3), out) == whole
    assert engine.asked == ["q2"]
    assert out.read_text() == text


def test_an_answer_whose_score_is_by_another_definition_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "student.jsonl"
    first = ask(Engine(), items(2), out)
    old = json.loads(out.read_text().splitlines()[0]) | {"logprob": -1.5}  # counted the token that ended it
    out.write_text(json.dumps(old) + "\n" + out.read_text().split("\n", 1)[1])
    engine = Engine()
    assert ask(engine, items(2), out) == first
    assert engine.asked == ["q0"]


def test_each_answer_is_on_disk_before_the_next_is_asked(tmp_path: Path) -> None:
    out, seen = tmp_path / "student.jsonl", []

    def watching(prompts: Sequence[Sequence[Message]], most: int) -> Iterator[tuple[int, Answer]]:
        for index in range(len(prompts)):
            yield index, Answer("x", "stop", 1, 1, 0.1)
            seen.append(len(read_predictions(out)))

    rows = items(3)
    ask_arm("base", "d", watching, rows, [r.prompt for r in rows], max_new_tokens=4, out=out)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("change", [{"arm_digest": "d2"}, {"max_new_tokens": 9}])
def test_other_weights_or_another_length_are_asked_anew(tmp_path: Path, change: dict[str, object]) -> None:
    ask(Engine(), items(2), tmp_path / "old.jsonl")
    engine = Engine()
    ask(engine, items(2), tmp_path / "new.jsonl", cached=tmp_path / "old.jsonl", **change)
    assert len(engine.asked) == 2


def test_kept_answers_are_reused_with_the_wanted_answer_of_today(tmp_path: Path) -> None:
    ask(Engine(), items(2), tmp_path / "old.jsonl")
    engine, row = Engine(), Example("renamed", (Message("user", "q0"), Message("assistant", "corrected")))
    found = ask(engine, [row], tmp_path / "new.jsonl", cached=tmp_path / "old.jsonl")
    assert engine.asked == []
    assert (found[0].id, found[0].expected, found[0].answer) == ("renamed", "corrected", "echo q0")
    assert read_predictions(tmp_path / "new.jsonl") == found


def test_two_items_with_one_question_are_asked_once(tmp_path: Path) -> None:
    twins = [Example(name, (Message("user", "same"), Message("assistant", name))) for name in ("a", "b")]
    engine = Engine()
    found = ask(engine, twins, tmp_path / "x.jsonl")
    assert engine.asked == ["same"]
    assert [(p.id, p.expected) for p in found] == [("a", "a"), ("b", "b")]


def test_an_engine_that_leaves_questions_out_is_named(tmp_path: Path) -> None:
    def lazy(prompts: Sequence[Sequence[Message]], most: int) -> Iterator[tuple[int, Answer]]:
        yield 0, Answer("only this", "stop", 1, 1, 0.1)

    rows = items(3)
    with pytest.raises(WorkbenchError, match="all but 2 of 3 items, the first 'row1'"):
        ask_arm("base", "d", lazy, rows, [r.prompt for r in rows], max_new_tokens=4, out=tmp_path / "x.jsonl")


def test_any_text_a_model_may_say_survives_the_file(tmp_path: Path) -> None:
    strange = "line\nbreak\u2028and \ud83d half, “quotes”, \0"

    def odd(prompts: Sequence[Sequence[Message]], most: int) -> Iterator[tuple[int, Answer]]:
        yield 0, Answer(strange, "length", 1, 1, 0.1)

    rows = items(1)
    found = ask_arm("base", "d", odd, rows, [r.prompt for r in rows], max_new_tokens=4, out=tmp_path / "x.jsonl")
    assert found[0].answer == strange
    assert read_predictions(tmp_path / "x.jsonl") == found


def test_lines_that_are_no_predictions_are_left_out(tmp_path: Path) -> None:
    whole = Prediction("1", "k", "a", "e", "stop", 1, 1, 0.1)
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(["[]", '{"id": "1"}', "{", json.dumps(asdict(whole)), ""]))
    assert read_predictions(path) == [whole]


def test_a_question_is_asked_with_its_own_functions_and_is_another_one_without_them(tmp_path: Path) -> None:
    asked: list[tuple[str, object]] = []

    def engine(
        prompts: Sequence[Sequence[Message]], max_new_tokens: int, tools: Sequence[object] = ()
    ) -> Iterator[tuple[int, Answer]]:
        asked.extend((p[-1].content, list(t)) for p, t in zip(prompts, tools, strict=True))  # type: ignore[call-overload]
        yield from ((at, Answer("x", "stop", 1, 1, 0.1)) for at in range(len(prompts)))

    same = items(1)[0].messages
    rows = [Example(f"r{n}", same, tools=({"name": f"f{n}"},)) for n in range(3)] + [Example("plain", same)]
    found = ask_arm("a", "d", engine, rows, [r.prompt for r in rows], max_new_tokens=4, out=tmp_path / "a.jsonl")
    assert sorted(asked, key=str) == [("q0", []), *(("q0", [{"name": f"f{n}"}]) for n in range(3))]
    assert len({p.key for p in found}) == 4
    plain = ask(Engine(), items(1), tmp_path / "b.jsonl", arm_digest="d", max_new_tokens=4)
    assert plain[0].key == found[3].key  # a question without functions keeps the key that it always had
