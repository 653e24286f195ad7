"""Learning from one's own rows through the door: raw text, answers and pairs in one recipe, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main

RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0, dtype: float32}}
data: {{train: file:pairs.jsonl}}
method: {{learning_rate: 2e-3, epochs: 100, max_steps: 3, evaluations: 1, warmup_share: 0.0, rank: 4, max_length: 128,
  sample_answers: 0, batch_size: 4}}
evaluate: {{few_shot: 2, max_new_tokens: 4, general: null, harmful: null, energy: false}}
launch: {{threads: 1}}
"""


@pytest.fixture
def project(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs, judged answers and documents, whose words are all drawn at random: none is a near copy."""
    words = random.Random(1)

    def text(count: int) -> str:
        return " ".join(f"w{words.randint(0, 9999)}" for _ in range(count))

    questions = [f"Which colour has {text(6)}?" for _ in range(60)]
    pairs = [{"prompt": question, "chosen": "yes", "rejected": "no"} for question in questions]
    judged = [
        {"prompt": question, "completion": "yes" if n % 2 else "no", "label": bool(n % 2)}
        for n, question in enumerate(questions)
    ]
    for name, rows in (("pairs", pairs), ("judged", judged)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "docs").mkdir()
    for n in range(20):
        (tmp_path / "docs" / f"{n}.txt").write_text(text(30))
    (tmp_path / "mine.yaml").write_text(RECIPE.format(model=tiny_model))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)
    return tmp_path


def facts_of(folder: Path, stage: str) -> dict[str, Any]:
    (run,) = folder.glob("experiments/mine/*/run.json")
    return json.loads(run.read_text())["stages"][stage]["facts"]


@pytest.mark.slow
def test_raw_text_answers_and_pairs_are_learned_one_after_the_other_in_one_recipe(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recipe=./mine.yaml", "method.learn=[pretrain,sft,dpo]", "data.documents=dir:docs"]
    assert main(["plan", *words, "output=json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["learning"]["learns"] == "pretrain, then sft, then dpo"
    assert plan["learning"]["pairs"].isdecimal()
    assert plan["training"]["steps"].endswith("for each of 3 kinds")
    assert main(["train", *words, "until=merge"]) == 0
    told = capsys.readouterr().err
    for line in ("packed into", "loss a token of held-out documents", "pairs judge", "better answer is the likelier"):
        assert line in told
    facts = facts_of(project, "train")
    assert facts["held_out"]["measure"].startswith("share of held-out pairs")
    assert facts["moved_tensors"] == facts["trained_tensors"]
    assert facts_of(project, "merge")["rows"] > 0
    (run,) = project.glob("experiments/mine/*")
    held = (run / "data" / "documents" / "validation.jsonl").read_text().splitlines()
    learned = (run / "data" / "documents" / "train.jsonl").read_text().splitlines()
    assert len(held) + len(learned) == 20
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e.get("name") == "train/loss"] == list(range(1, 10))
    assert sum(e.get("name") == "held_out/gain_low" for e in events) == 2, "of the documents and of the pairs"


@pytest.mark.parametrize("rows", ["pairs", "judged"])
def test_a_rejected_answer_is_never_learned_because_nobody_named_what_to_learn(
    project: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recipe=./mine.yaml", f"data.train=file:{rows}.jsonl"]
    assert main(["plan", *words]) == 2
    told = capsys.readouterr().err
    assert "method.learn=[kto]" in told or "method.learn=[dpo]" in told
    assert main(["plan", *words, "method.learn=[kto]", "output=json"]) == 0
    learning = json.loads(capsys.readouterr().out)["learning"]
    assert "pairs" in learning or "good" in learning["judged answers"]


def test_raw_text_alone_is_trained_and_merged_and_asks_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": (project / "docs" / f"{n}.txt").read_text()}) + "\n" for n in range(20)]
    (project / "raw.jsonl").write_text("".join(lines))
    words = ["recipe=./mine.yaml", "data.train=file:raw.jsonl", "data.format=text", "method.learn=[pretrain]"]
    assert main(["plan", *words, "output=json"]) == 0
    assert main(["train", *words, "until=merge"]) == 0
    assert facts_of(project, "train")["held_out"]["measure"].startswith("loss a token")
    capsys.readouterr()
    assert main(["train", *words, "until=evaluate"]) == 2
    assert "raw text" in capsys.readouterr().err
