"""Distillation through the door, on tiny models: what is learned of a teacher, and when the run refuses or stops."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from distil_project import RIGHT, SMALL, run_of, with_answers
from teacher_project import Project, project, questions
from teacher_server import teacher_server
from tiny_gguf import write_tiny_gguf
from workbench.compose import composed, find_recipe
from workbench.recipe import Recipe, read, weights_of
from workbench.runs import Run
from workbench.stages.prompts import Lessons
from workbench.stages.rows import lessons


@pytest.fixture(autouse=True)
def untracked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's part of these lives is held elsewhere, and opening its store takes longer than they do."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)


def learned(made: Project, *words: str) -> tuple[Recipe, Lessons]:
    """What the run at hand learns from, read again as its train stage does."""
    run = run_of(made)
    with contextlib.chdir(made.folder):
        cfg = composed(find_recipe("./mine.yaml"), [word for word in words if "recipe=" not in word])
        recipe = read(cfg, "mine")
        return recipe, lessons(recipe, Run(run, "mine", run.name))


@pytest.mark.slow
def test_text_learns_several_answers_by_their_votes_with_gold_rows_mixed_in(tiny_model: Path, tmp_path: Path) -> None:
    answers = [*RIGHT, ["Is item", ["yes", "no", "yes", "maybe"]]]
    with teacher_server(answer=answers) as server:
        made = project(tmp_path, questions(30), server.url + "/v1", samples=4, temperature=0.7)
        with_answers(made)
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text]", "method.teach.answers=2",
                 "method.teach.gold_share=0.2", "teacher.limit=20", "method.teach.development_rows=9"]  # fmt: skip
        done = made.run("train", *words, "until=train")
    assert done.returncode == 0, done.stderr
    labels = made.lines("labels")
    assert len(labels) == 20 + 9, "and nine development rows were asked"
    first = next(line for line in labels if line["id"].startswith("row-"))
    assert (first["answer"], first["agreement"]) == ("yes", 0.5)
    assert [(one["answer"], one["agreement"]) for one in first["others"]] == [("no", 0.25)]
    assert "the teacher scores 1.000, base 0.000 on 9 gold development rows" in done.stderr
    assert "further answers to the same prompts" in done.stderr
    _, found = learned(made, *words)
    told = Counter(row.answer for row in found.splits.train)
    assert told == {"yes": 20, "no": 20, "gold": 10}, "a fifth of all rows is gold"
    assert sorted(set(found.weights.values())) == [0.25, 0.5]
    assert len({row.id for row in found.splits.train}) == 50
    gold = {row.id.removesuffix("~gold") for row in found.splits.train if row.id.endswith("~gold")}
    assert not gold & {line["id"] for line in labels}, "prompts that the teacher was not asked come first"
    assert [e.answer for e in found.splits.validation] == ["yes"] * 12, "with gold in training, gold judges"
    again = learned(made, *words)[1]
    assert [e.id for e in again.splits.train] == [e.id for e in found.splits.train]


@pytest.mark.slow
def test_without_gold_the_evaluation_loss_rests_on_the_teachers_answers_and_no_gold_row_is_trained_on(
    tiny_model: Path, tmp_path: Path
) -> None:
    answers = [["validation question number 1", "wrong"], *RIGHT, ["Is item", "no"]]
    with teacher_server(answer=answers) as server:
        made = project(tmp_path, questions(12), server.url + "/v1")
        with_answers(made)
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text]"]
        done = made.run("train", *words, "until=train")
    assert done.returncode == 0, done.stderr
    assert "no gold answer is trained on" in done.stderr
    _, found = learned(made, *words)
    assert {e.answer for e in found.splits.train} == {"no"}
    judged = {e.id: e.answer for e in found.splits.validation}
    assert judged["validation-1"] == judged["validation-10"] == "wrong"
    assert Counter(judged.values()) == {"yes": 9, "wrong": 3}
    assert {e.answer for e, _ in found.development} == {"yes"}, "held against gold"


@pytest.mark.slow
def test_reasons_are_a_second_task_and_the_answers_task_is_asked_as_at_inference(
    tiny_model: Path, tmp_path: Path
) -> None:
    said = {"rationale": "the shelf list says that it is in stock", "label": "yes"}
    answers = [["", {**said}]]
    with teacher_server(answer=answers) as server:
        made = project(tmp_path, questions(12), server.url + "/v1", labels=["yes", "no"], rationale=True)
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[rationale]"]
        done = made.run("train", *words, "until=train")
    assert done.returncode == 0, done.stderr
    assert "12 rows ask for the reason, marked [rationale]" in done.stderr
    run = run_of(made)
    facts = json.loads((run / "run.json").read_text())["stages"]["train"]["facts"]
    assert facts["rows"] == 24
    from workbench.data.chat import load_tokenizer
    from workbench.stages.train.kinds.supervised import answer_rows, reason_rows
    from workbench.stages.train.task import Task

    recipe, found = learned(made, *words, "method.teach.rationale_weight=0.5")
    tokenizer = load_tokenizer(tiny_model, None)
    rows = found.splits.train
    task = Task(recipe, Run(run, "mine", run.name), tiny_model, rows, found.weights, found.reasons, [], None,
                lambda *a, **k: None)  # fmt: skip
    plain, reasons = answer_rows(task), reason_rows(task)
    assert "[rationale]" not in tokenizer.decode(plain[0].input_ids)
    assert "user\n[rationale] Is item 0" in tokenizer.decode(reasons[0].input_ids)
    assert said["rationale"] in tokenizer.decode(reasons[0].input_ids)
    weight = sum(row.weight * sum(row.trained) for row in reasons) / sum(sum(row.trained) for row in plain)
    assert weight == pytest.approx(0.5), "all reasons together weigh half of all answers"


@pytest.mark.slow
def test_log_probabilities_of_another_tokenizer_are_used_by_bytes_in_a_chain_after_the_text(
    tiny_model: Path, tmp_path: Path
) -> None:
    with teacher_server(answer=[*RIGHT, ["Is item", "surely not, it is sold out"]]) as server:
        made = project(tmp_path, questions(12), server.url + "/v1", logprobs=5)
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text,logprobs]"]
        done = made.run("train", *words, "until=train")
    assert done.returncode == 0, done.stderr
    assert "log-probabilities: 12 rows by chunks of bytes" in done.stderr
    assert "logprobs: 2 of 2 kinds" in done.stderr
    events = [json.loads(line) for line in (run_of(made) / "events.jsonl").read_text().splitlines()]
    steps = [e["step"] for e in events if e.get("name") == "train/loss"]
    assert steps == [1, 2, 3, 4], "the second kind's steps go on from the first's"
    assert not (run_of(made) / "train" / "before").exists()


@pytest.fixture
def local(yes_model: Path, tmp_path: Path) -> Project:
    """A project whose teacher is the tiny model that says yes, in llama.cpp."""
    write_tiny_gguf(yes_model, tmp_path / "teacher.gguf")
    made = project(tmp_path, questions(24), "", api="local_gguf", source="file:teacher.gguf", route="own", family="",
                   key_variable=None, logprobs=10, max_new_tokens=8, concurrency=4)  # fmt: skip
    recipe = json.loads((tmp_path / "mine.yaml").read_text())
    recipe["teacher"].pop("base_url")
    recipe["teacher"]["price"] = {"input_mtok": 0.0, "output_mtok": 0.0}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    return made


@pytest.mark.slow
def test_log_probabilities_of_the_same_tokenizer_are_used_token_by_token(local: Project, tiny_model: Path) -> None:
    done = local.run("train", *SMALL, f"model.source=dir:{tiny_model}", "method.distil=[logprobs]", "until=train")
    assert done.returncode == 0, done.stderr
    assert "log-probabilities: 24 rows token by token" in done.stderr
    assert "the teacher scores 1.000, base 0.000" in done.stderr


@pytest.mark.slow
def test_a_teacher_that_does_not_beat_the_base_is_refused_with_both_scores(tiny_model: Path, tmp_path: Path) -> None:
    with teacher_server(answer=[["", "no"]]) as server:
        made = project(tmp_path, questions(12), server.url + "/v1")
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text]", "until=train"]
        done = made.run("train", *words)
        assert done.returncode == 3, done.stderr
        assert "the teacher scores 0.000, base 0.000 on 12 gold development rows" in done.stderr
        assert "method.teach.headroom" in done.stderr
        assert "train" not in json.loads((run_of(made) / "run.json").read_text())["stages"]
        bought = len(server.calls())
        assert made.run("train", *words, "method.teach.headroom=null").returncode == 0, "told, not judged: the same run"
        assert len(server.calls()) == bought


@pytest.mark.slow
def test_a_student_that_collapses_while_its_loss_falls_is_stopped_and_its_best_checkpoint_kept(
    yes_model: Path, tmp_path: Path
) -> None:
    with teacher_server(answer=[["", "no"]]) as server:
        made = project(tmp_path, questions(40), server.url + "/v1")
        words = [*SMALL, f"model.source=dir:{yes_model}", "method.distil=[text]", "until=train", "method.kind=full",
                 "method.max_steps=12", "method.epochs=9", "method.evaluations=6", "method.learning_rate=1e-2",
                 "method.teach.headroom=null", "method.warmup_share=1.0"]  # fmt: skip
        done = made.run("train", *words)
        assert done.returncode == 3, done.stderr
        assert "the student falls while its validation loss falls" in done.stderr
        assert "its best was 1.000 at step 2" in done.stderr
        assert "step-00000002 is kept" in done.stderr
        assert (run_of(made) / ".train.staging" / "checkpoints" / "step-00000002" / "model.safetensors").is_file()
        again = made.run("train", *words)
        assert again.returncode == 3, "the same command stops at the same place"
        told = made.run("train", *words, "method.teach.hacking_drop=null")
        assert told.returncode == 0, told.stderr
        assert "resumed from step" in told.stderr


@pytest.mark.slow
def test_a_cut_student_is_trained_merged_and_judged_beside_the_whole_base(tiny_model: Path, tmp_path: Path) -> None:
    with teacher_server(answer=[["", "yes"]]) as server:
        made = project(tmp_path, questions(24), server.url + "/v1")
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text]", "model.shrink.layers=1",
                 "model.layers=0", "method.kind=full"]  # fmt: skip
        done = made.run("train", *words, "until=evaluate")
    assert done.returncode == 3, done.stderr
    assert "starts with 1 of the model's own layers" in done.stderr
    config = json.loads((run_of(made) / "merge" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    report = json.loads((run_of(made) / "evaluate" / "report.json").read_text())
    assert report["arms"]["student"]["bytes"]["value"] < report["arms"]["base"]["bytes"]["value"]
    assert (run_of(made) / "evaluate" / "predictions" / "student.jsonl").read_text().count("\n") == 12


@pytest.mark.slow
def test_an_adapter_on_a_cut_model_is_merged_into_that_model(tiny_model: Path, tmp_path: Path) -> None:
    with teacher_server(answer=[["", "yes"]]) as server:
        made = project(tmp_path, questions(24), server.url + "/v1")
        words = [
            *SMALL,
            f"model.source=dir:{tiny_model}",
            "method.distil=[text]",
            "model.shrink.layers=1",
            "model.layers=0",
        ]
        done = made.run("train", *words, "until=merge")
    assert done.returncode == 0, done.stderr
    config = json.loads((run_of(made) / "merge" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1


@pytest.mark.slow
def test_a_learning_curve_is_drawn_on_request_at_a_quarter_a_half_and_all_of_the_labels(
    tiny_model: Path, tmp_path: Path
) -> None:
    with teacher_server(answer=[["", "yes"]]) as server:
        made = project(tmp_path, questions(20), server.url + "/v1")
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text]", "method.teach.curve=true",
                 "method.epochs=20"]  # fmt: skip
        done = made.run("train", *words, "until=train")
    assert done.returncode == 0, done.stderr
    points = json.loads((run_of(made) / "train" / "curve.json").read_text())
    assert [point["labels"] for point in points] == [5, 10, 20]
    assert all(p["ci_low"] <= p["value"] <= p["ci_high"] for p in points)
    assert "learning curve on 12 gold development rows" in done.stderr


BASE = {
    "defaults": ["workbench", "_self_"],
    "model": {"source": "dir:x"},
    "data": {"train": "x.csv"},
    "teacher": {"api": "openai", "model": "m", "rationale": True, "logprobs": 5, "samples": 4, "temperature": 0.7},
}


def keys_of(folder: Path, *words: str) -> dict[str, Any]:
    (folder / "mine.yaml").write_text(yaml.safe_dump(BASE))
    return weights_of(read(composed(find_recipe(str(folder / "mine.yaml")), list(words)), "mine"))


@pytest.mark.parametrize(
    "word",
    [
        "method.distil=[text]", "method.teach.divergence=jsd", "method.teach.beta=0.3", "method.teach.skew=0.2",
        "method.teach.temperature=2", "method.teach.weight=0.9", "method.teach.gold_share=0.1",
        "method.teach.answers=2", "method.teach.vote_weight=false", "method.teach.rationale_weight=2",
        "method.teach.alignment=bytes", "method.teach.dpo_beta=0.2", "method.teach.samples=2",
        "method.teach.sample_temperature=0.5", "method.teach.max_new_tokens=9", "method.teach.development_rows=5",
        "method.teach.curve=true", "model.shrink.layers=3", "model.shrink.keep=first",
    ],
)  # fmt: skip
def test_every_key_that_makes_the_weights_makes_another_run(word: str, tmp_path: Path) -> None:
    assert keys_of(tmp_path, word) != keys_of(tmp_path)


@pytest.mark.parametrize("word", ["method.teach.headroom=null", "method.teach.hacking_drop=0.5"])
def test_a_guard_s_limit_orphans_no_run(word: str, tmp_path: Path) -> None:
    assert keys_of(tmp_path, word) == keys_of(tmp_path)


@pytest.mark.parametrize(
    ("words", "named", "remedy"),
    [
        (["method.distil=[txt]"], "method.distil", "'text'"),
        (["method.distil=[text,text]"], "method.distil", "twice"),
        (["method.distil=[text]", "teacher.api=none"], "method.distil", "teacher"),
        (["method.distil=[rationale]", "teacher.rationale=false"], "method.distil", "teacher.rationale=true"),
        (["method.distil=[logprobs]", "teacher.logprobs=0"], "method.distil", "teacher.logprobs=20"),
        (["method.distil=[text]", "method.teach.answers=5"], "method.teach.answers", "teacher.samples=5"),
        (["model.layers=4", "model.shrink.layers=5"], "model.shrink.layers", "4 layers"),
    ],
)
def test_what_a_kind_cannot_do_without_is_said_before_anything_starts(
    words: list[str], named: str, remedy: str, tmp_path: Path
) -> None:
    from workbench.errors import RequestError

    with pytest.raises(RequestError) as refused:
        keys_of(tmp_path, *words)
    assert refused.value.where == named
    assert remedy in str(refused.value)
