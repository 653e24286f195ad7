"""`preview` shows what will be trained, whatever the rows are: answers, pairs, judged answers or raw text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main

RECIPE = """\
defaults: [workbench, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data: {{train: file:train.jsonl, test: null}}
method: {{max_length: 400}}
launch: {{device: cpu}}
"""
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


def question(number: int) -> str:
    return " ".join(f"w{number * k % 89}x{number}" for k in range(1, 7)) + "?"


def pair(number: int) -> dict[str, Any]:
    prompt = [*EARLIER, {"role": "user", "content": question(number)}]
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": f"Yes {number}."}],
        "rejected": [{"role": "assistant", "content": f"No {number}!"}],
    }


def judged(number: int) -> dict[str, Any]:
    return {"prompt": question(number), "completion": f"Maybe {number}.", "label": number % 2 == 0}


def text(number: int) -> dict[str, Any]:
    return {"text": f"Article {number}: {question(number)}"}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE.format(model=tiny_model))
    return tmp_path


def preview(folder: Path, capfd: pytest.CaptureFixture[str], row: Any, *words: str) -> dict[str, Any]:
    (folder / "train.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(100)))
    capfd.readouterr()
    assert main(["preview", "recipe=./mine.yaml", "output=json", "rows=1000", *words]) == 0
    return json.loads(capfd.readouterr().out)


def trained(row: dict[str, Any]) -> str:
    return "".join(part["text"] for part in row["parts"] if part["trained"])


@pytest.mark.parametrize("kind", ["dpo", "orpo"])
def test_of_a_hundred_pairs_both_answers_are_shown_and_the_turn_before_them_is_not_trained(
    kind: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = preview(folder, capfd, pair, f"method.learn=[{kind}]", "method.train_on=all_answers")["rows"]
    assert {row["answer"] for row in rows} == {"chosen", "rejected"}
    shown = {row["id"]: row for row in rows}
    halves = [(row, shown[f"{name}~rejected"]) for name, row in shown.items() if row["answer"] == "chosen"]
    assert len(halves) == len(rows) / 2 == 70, "all but the rows that judge and those that test"
    for chosen, rejected in halves:
        assert trained(chosen).startswith("Yes ")
        assert trained(rejected) == trained(chosen).replace("Yes", "No").replace(".", "!")
        assert "Good day" in "".join(part["text"] for part in rejected["parts"])


def test_of_a_hundred_judged_answers_each_is_called_good_or_bad(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = preview(folder, capfd, judged, "method.learn=[kto]")["rows"]
    assert len(rows) == 70
    for row in rows:
        number = int(trained(row).removeprefix("Maybe ").partition(".")[0])
        assert row["answer"] == ("bad" if number % 2 else "good")


def test_a_pair_is_a_good_and_a_bad_answer_to_a_kind_that_judges(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = preview(folder, capfd, pair, "method.learn=[kto]")["rows"]
    assert all(row["answer"] == ("good" if trained(row).startswith("Yes") else "bad") for row in rows)
    assert {row["answer"] for row in rows} == {"good", "bad"}


def test_of_a_hundred_documents_every_character_is_trained_and_no_template_stands_around_it(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = preview(folder, capfd, text, "data.format=text", "method.learn=[pretrain]")["rows"]
    assert len(rows) == 70
    for row in rows:
        assert "answer" not in row
        first, rest = row["parts"]
        assert (first["tokens"], rest["trained"]) == (1, True), "nothing comes before the first token"
        number = int((first["text"] + rest["text"]).removeprefix("Article ").partition(":")[0])
        assert first["text"] + rest["text"] == text(number)["text"] + "<|im_end|>"


def test_a_kind_that_samples_the_student_says_that_the_answers_shown_are_not_what_it_trains_on(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["method.learn=[grpo]", "method.reward.max_new_tokens=8", "evaluate.scorer=exact_match"]
    said = preview(folder, capfd, lambda n: {"prompt": question(n), "completion": "yes"}, *words)["said"]
    assert any("what the student itself answers" in line for line in said)


def test_the_screen_names_a_pair_s_halves(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(40)))
    assert main(["preview", "recipe=./mine.yaml", "method.learn=[dpo]", "rows=2"]) == 0
    shown = capfd.readouterr().out
    assert ", chosen: " in shown
    assert ", rejected: " in shown


def test_the_documents_beside_the_rows_of_a_task_are_shown_where_they_alone_are_learned(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes").mkdir()
    for number in range(20):
        (folder / "notes" / f"{number}.txt").write_text(f"Note {number}: {question(number + 500)}")
    words = ["method.learn=[pretrain]", "data.documents=dir:notes"]
    shown = preview(folder, capfd, lambda n: {"prompt": question(n), "completion": "yes"}, *words)
    assert all("".join(part["text"] for part in row["parts"]).startswith("Note ") for row in shown["rows"])
    assert any(line.startswith("documents: 20 text files") for line in shown["said"])
