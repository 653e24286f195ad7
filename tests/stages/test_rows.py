"""A run's rows: prepared once, written whole, read by every later stage, and enough where their sources are gone."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distil_project import RIGHT, SMALL, run_of, with_answers
from teacher_project import project as teacher_project
from teacher_project import questions
from teacher_server import teacher_server
from workbench import runs, stored_rows
from workbench.__main__ import main
from workbench.compose import composed
from workbench.data import chat, prepare
from workbench.data.prepare import Splits
from workbench.errors import WorkbenchError
from workbench.recipe import Columns, Data, Recipe, read
from workbench.records import Example, Message, ToolCall
from workbench.runs import Run, keep_data, kept_data, open_run
from workbench.sources import shipped_folder
from workbench.stages import rows as run_rows
from workbench.stages.evaluate.arms import choose_shots
from workbench.stages.lifecycle import of_its_day
from workbench.stages.prompts import Lessons

RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data: {{train: file:mine.csv, columns: {{prompt: question, answer: answer}}}}
method: {{learning_rate: 1e-3, epochs: 1000, max_steps: 2, evaluations: 1, sample_answers: 1, max_length: 200}}
quantize: {{one: {{format: nf4}}, two: {{format: nf4}}}}
evaluate: {{few_shot: 2, max_new_tokens: 4, general: file:general.jsonl, harmful: null, energy: false}}
gate: {{min_rows: 5}}
"""


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with two formats, 50 rows of which five are long, one general question, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)
    write_rows(tmp_path / "mine.csv")
    (tmp_path / "general.jsonl").write_text(json.dumps({"id": "g1", "prompt": "What is 1+1?", "answer": "2"}) + "\n")
    (tmp_path / "mine.yaml").write_text(RECIPE.format(model=tiny_model))
    return tmp_path


def write_rows(path: Path, more: int = 0) -> None:
    colours = ["red", "blue", "green", "black", "white"]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer"])
        for number in range(50 + more):
            long = 150 if number % 10 == 9 else 6
            words = " ".join(f"w{(number * 7 + k * k) % 97}x{number}" for k in range(long))
            writer.writerow([f"Which colour has {words}?", colours[number % 5]])


def workbench(*words: str) -> int:
    return main([words[0], "recipe=./mine.yaml", "method.too_long=drop", *words[1:]])


def the_run(folder: Path) -> Run:
    (path,) = [p.parent for p in folder.glob("experiments/mine/*/run.json")]
    return Run(path, "mine", path.name)


def move_sources(folder: Path) -> None:
    (folder / "moved").mkdir()
    for name in ("mine.csv", "general.jsonl", "cache"):
        if (folder / name).exists():
            (folder / name).rename(folder / "moved" / name)


def test_a_damaged_manifest_of_another_run_is_not_what_a_missing_source_ends_with(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    move_sources(folder)
    torn = folder / "experiments" / "mine" / "0000torn"
    torn.mkdir(parents=True)
    (torn / "run.json").write_text('{"sta')
    assert workbench("train") == 2
    assert "data.train=file:mine.csv: no such file" in capfd.readouterr().err


@pytest.mark.slow
def test_a_life_with_two_formats_prepares_its_rows_once_and_needs_no_source_from_train_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared, rendered = [], Counter[str]()
    original, render = prepare.prepare, chat.render

    def counted(*arguments: object, **named: object) -> Splits:
        prepared.append(arguments)
        return original(*arguments, **named)  # type: ignore[arg-type]

    def counted_render(example: Example, *arguments: object, **named: object) -> object:
        rendered[example.where] += 1
        return render(example, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "prepare", counted)
    monkeypatch.setattr(chat, "render", counted_render)
    assert workbench("train", "until=train") == 0
    assert len(rendered) == 40, "training and validation rows"
    assert set(rendered.values()) == {1}, "those that are too long among them"
    move_sources(folder)
    capfd.readouterr()
    assert workbench("train", "until=register") == 3, "a random model proves nothing"
    assert "data.train=file:mine.csv is not here any more" in capfd.readouterr().err
    run = the_run(folder)
    stages = ["train", "merge", "quantize/one", "quantize/two", "evaluate", "register"]
    assert list(run.manifest()["stages"]) == stages
    assert len(prepared) == 1
    report = json.loads((run.folder / "evaluate" / "report.json").read_text())
    assert report["general"]["arms"]["base"], "the run's own copy of the questions was asked"
    assert workbench("train", "until=register") == 3
    assert "nothing left to do" in capfd.readouterr().err


@pytest.mark.slow
def test_without_its_rows_a_recipe_goes_on_only_with_the_one_run_that_they_made(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = folder / "mine.csv"
    assert workbench("train", "until=train") == 0
    content = rows.read_bytes()
    rows.unlink()
    for words in (["method.learning_rate=2e-3"], ["fresh=true"], ["data.test=file:other.csv"]):
        capfd.readouterr()
        assert workbench("merge", *words) == 2, words
        assert "no such file" in capfd.readouterr().err
    assert the_run(folder).done("train") is not None, "fresh=true has cleared nothing"
    assert workbench("merge") == 0
    write_rows(rows, more=3)
    assert workbench("train", "until=train") == 0
    rows.unlink()
    assert workbench("merge") == 2, "either of two runs could be meant"
    rows.write_bytes(content)
    assert workbench("merge") == 0


def test_a_base_that_is_gone_is_named_by_the_stage_that_needs_it(
    folder: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "base").symlink_to(tiny_model)
    assert workbench("train", "until=train", "model.source=dir:base") == 0
    (folder / "base").unlink()
    capfd.readouterr()
    assert workbench("merge", "model.source=dir:base") == 2
    assert "model.source=dir:base is not here any more" in (shown := capfd.readouterr().err)
    assert "no such file: base" in shown


@pytest.mark.slow
def test_prepared_rows_that_were_changed_or_are_gone_are_refused_by_name(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert workbench("train", "until=train") == 0
    path = the_run(folder).folder / "data" / "learned" / "validation.jsonl"
    content = path.read_bytes()
    for spoiled in (content.replace(b'"red"', b'"rad"').replace(b'"blue"', b'"blau"'), content[:-40], b""):
        path.write_bytes(spoiled)
        capfd.readouterr()
        assert workbench("merge") == 1
        shown = capfd.readouterr().err
        assert str(path) in shown
        assert "it has changed: sha256 is" in shown
        assert "fresh=true" in shown
    path.unlink()
    assert workbench("merge") == 1
    assert "it is gone" in capfd.readouterr().err
    path.write_bytes(content)
    assert workbench("merge") == 0
    assert workbench("train", "until=train", "fresh=true") == 0
    assert not (the_run(folder).folder / "merge").exists()
    assert {p.stat().st_mode & 0o077 for p in (the_run(folder).folder / "data").rglob("*")} == {0}


# The files, without a model.


@pytest.fixture
def empty(tmp_path: Path):
    with open_run(tmp_path / "experiments", "mine", "0a1b2c3d", {}, fresh=False) as run:
        yield run


def notices() -> Recipe:
    """The shipped data set, as its noun names it."""
    keys = yaml.safe_load((shipped_folder() / "configs" / "data" / "licence_notices.yaml").read_text())
    return Recipe(data=Data(**keys | {"columns": Columns(**keys["columns"])}))


def test_rows_are_read_back_as_they_were_prepared(empty: Run) -> None:
    recipe = notices()
    wanted = prepare.prepare(recipe.data, recipe.seed)
    assert run_rows.keep_prepared(recipe, empty).splits == wanted
    assert run_rows.rows(recipe, empty) == wanted
    assert run_rows.part(recipe, empty, "test") == wanted.test
    assert run_rows.descriptions(recipe, empty) == wanted.datasets


@pytest.mark.slow
def test_an_evaluation_shows_the_same_examples_whatever_was_too_long_to_learn_from(empty: Run) -> None:
    recipe = notices()
    wanted = run_rows.keep_prepared(recipe, empty).splits
    short = replace(wanted, train=[row for row in wanted.train if len(row.text) < 300])
    assert len(short.train) < len(wanted.train)
    run_rows.keep_learned(empty, Lessons(short, {}, {}, []))
    assert run_rows.lessons(recipe, empty).splits.train == short.train
    assert run_rows.rows(recipe, empty) == wanted
    assert choose_shots(run_rows.rows(recipe, empty), recipe) == choose_shots(wanted, recipe)


ODD = Example(
    "half \ud83d id",
    (Message("user", "two\u2028lines\r\nand\x85more \ud800"), Message("assistant", 'é "quoted"\n')),
    "a group",
    "rows.jsonl:3",
    {"kind": "x", "nested": {"a": [1, 2.5, None, True]}},
    "own \ufeff text",
)


def test_a_run_keeps_the_day_on_which_it_began_for_a_chat_template_that_writes_one(empty: Run) -> None:
    manifest = empty.folder / "run.json"
    began = json.loads(manifest.read_text()) | {"created": "2026-03-05T23:59:59.000Z"}
    manifest.write_text(json.dumps(began))
    recipe = notices()
    assert of_its_day(recipe, empty).model.date == "2026-03-05"
    named = replace(recipe, model=replace(recipe.model, date="2025-01-01"))
    assert of_its_day(named, empty).model.date == "2025-01-01"


def test_what_was_learned_is_read_back_with_weights_reasons_and_what_the_teacher_said(empty: Run) -> None:
    recipe = Recipe(data=Data(name="mine"))
    with keep_data(empty, "prepared") as folder:
        stored_rows.write_lines(folder / "test.jsonl", [stored_rows.line_of(ODD)])
    plain = Example("b", (Message("user", "q"), Message("assistant", "")))
    described = [{"name": "mine", "source": "file:x.csv", "digest": "d", "rows": 1, "role": "training"}]
    splits = Splits([ODD, plain], [ODD], [ODD], [], ["said"], described)
    material = Lessons(splits, {ODD.id: 0.25}, {"b": "since\nit is"}, [(ODD, ""), (plain, "yes")])
    run_rows.keep_learned(empty, material)
    assert run_rows.lessons(recipe, empty) == material
    renamed = Recipe(data=Data(name="other"))
    assert [d["name"] for d in run_rows.descriptions(renamed, empty)] == ["other"]


def test_a_kill_while_rows_are_written_or_before_they_are_noted_leaves_nothing_half(
    empty: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def fill(content: str) -> None:
        with keep_data(empty, "prepared") as folder:
            (folder / "train.jsonl").write_text(content)

    with pytest.raises(Killed), keep_data(empty, "prepared") as folder:
        (folder / "train.jsonl").write_text("half")
        (folder / "left.jsonl").write_text("over")
        raise Killed
    assert kept_data(empty, "prepared") is None
    assert not (empty.folder / "data" / "prepared").exists()

    def killed(path: Path, text: str) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runs, "write_whole", killed)
        fill("whole")
    assert kept_data(empty, "prepared") is None
    with pytest.raises(WorkbenchError, match="has changed"):
        run_rows.checked_file(empty, "prepared", "train.jsonl")
    fill("whole")
    assert run_rows.checked_file(empty, "prepared", "train.jsonl").read_text() == "whole"
    assert [p.name for p in (empty.folder / "data").rglob("*")] == ["prepared", "train.jsonl"]


@pytest.mark.slow
def test_a_teachers_answers_become_rows_once_and_the_prompts_are_needed_no_more(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, original = [], prepare.prepare

    def counted(*arguments: object, **named: object) -> Splits:
        prepared.append(arguments)
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "prepare", counted)
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)
    with teacher_server(answer=[*RIGHT, ["Is item", "no"]]) as server:
        made = teacher_project(tmp_path, questions(12), server.url + "/v1")
        with_answers(made)
        words = [*SMALL, f"model.source=dir:{tiny_model}", "method.distil=[text]", "method.teach.gold_share=0.5"]
        assert made.run("label", *words).returncode == 0
        for part in ("prompts", "validation", "test"):
            (tmp_path / f"{part}.jsonl").unlink()
        done = made.run("train", *words, "until=merge")
    assert done.returncode == 0, done.stderr
    assert "teacher.prompts" not in done.stderr
    assert "data.train=file:prompts.jsonl is not here any more" in done.stderr
    assert len(prepared) == 1
    lines = (run_of(made) / "data" / "learned" / "train.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["messages"][-1][1] for line in lines) == {"no": 12, "gold": 12}


def test_a_row_with_tools_thoughts_and_weights_is_read_back_as_it_was_written() -> None:
    call = Message("assistant", "", reasoning="which?", tool_calls=(ToolCall("look", '{"for": "x"}', "c1"),))
    turns = (Message("user", "q", weight=0.0), call, Message("tool", "3", tool_call_id="c1"), Message("assistant", "3"))
    row = Example(
        "a", turns, tools=({"type": "function", "function": {"name": "look"}},), weight=0.5,
        rejected=(Message("assistant", "4"),), good=False,
    )  # fmt: skip
    assert stored_rows.example_of(json.loads(stored_rows.line_of(row))) == row
    plain = Example("b", (Message("user", "q"), Message("assistant", "a")))
    assert json.loads(stored_rows.line_of(plain))["messages"] == [["user", "q"], ["assistant", "a"]]


def test_labels_that_a_hand_has_changed_are_not_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with teacher_server(answer="json") as server:
        made = teacher_project(tmp_path, questions(6), server.url + "/v1", labels=["yes", "no"])
        assert made.label().returncode == 0
    monkeypatch.chdir(tmp_path)
    recipe, home = read(composed(tmp_path / "mine.yaml", []), "mine"), made.stage.parent
    run = Run(home, "mine", home.name)
    assert len(run_rows.rows(recipe, run).train) == 6
    labels = home / "label" / "labels.jsonl"
    labels.write_text(labels.read_text().replace('"id": "row-0"', '"id": "row-1"'))
    for read_rows in (run_rows.rows, run_rows.lessons):
        with pytest.raises(WorkbenchError, match="not the ones the stage made"):
            read_rows(recipe, run)
