"""From a teacher's answers to a registered student: the whole life, and the duties that travel with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teacher_project import project, questions
from teacher_server import teacher_server

SMALL = [
    "method.max_steps=3", "method.evaluations=1", "evaluate.max_new_tokens=4", "evaluate.few_shot=2", "gate.min_rows=5",
    "model.sha256=null", "model.name=tiny", "model.family=phi",
    "evaluate.general=null", "evaluate.harmful=null", "evaluate.energy=false",
]  # fmt: skip


@pytest.mark.slow
def test_prompts_alone_are_enough_validation_rows_are_answered_too_and_gold_must_be_named(
    tiny_model: Path, tmp_path: Path
) -> None:
    with teacher_server(answer="json") as server:
        made = project(tmp_path, questions(60), server.url + "/v1", labels=["yes", "no"])
        words = [*SMALL, f"model.source=dir:{tiny_model}", "data.validation=null"]
        done = made.run("train", "recipe=./mine.yaml", *words, "until=train")
        assert done.returncode == 0, done.stderr
        assert "54 training rows carry" in done.stderr
        assert "validation loss" in done.stderr
        refused = made.label(*words, "data.test=null", "seed=9")
        assert refused.returncode == 2
        assert "data.test" in refused.stderr


@pytest.mark.slow
def test_a_student_of_a_llama_carries_its_duties_to_its_files_and_to_the_registry(
    tiny_model: Path, tmp_path: Path
) -> None:
    with teacher_server(answer="json") as server:
        made = project(
            tmp_path, questions(40), server.url + "/v1", labels=["yes", "no"], inside=True, privacy="restricted",
            route="weights", family="llama-3.3",
        )  # fmt: skip
        words = [*SMALL, f"model.source=dir:{tiny_model}"]
        done = made.run("train", "recipe=./mine.yaml", *words)
        assert done.returncode == 3, done.stderr  # a random model proves nothing, and the gate says so
        assert "40 training rows carry the answers of gpt-test" in done.stderr
        (run,) = [p.parent for p in made.folder.glob("experiments/mine/*/run.json")]
        duties = json.loads((run / "merge" / "model" / "duties.json").read_text())["duties"]
        assert any("Llama" in duty["text"] for duty in duties), "the teacher's"
        assert any("MIT" in duty["text"] + duty["origin"] for duty in duties), "and the base model's"
        bought = len(server.calls())
        again = made.run("train", "recipe=./mine.yaml", *words)
        assert "nothing left to do" in again.stderr
        assert len(server.calls()) == bought

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{made.folder / 'experiments' / 'mlflow.db'}")
    version = client.get_model_version("mine", "1")
    assert version.tags["teacher"] == "gpt-test"
    assert version.tags["teacher_terms"] == "allow_with_duties"
    tagged = " ".join(value for name, value in version.tags.items() if name.startswith("duty."))
    assert "Built with Llama" in tagged

    public = made.label(*words, "teacher.distribution=public", "seed=5")
    assert public.returncode == 2
    assert "tracking.registered_model" in public.stderr, "a public student of a Llama must be called one"
