"""Folds, through the public door on a tiny random model: every row judges, by a sibling that has not learned it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bundle_project import new_project, only_run, stages
from workbench.__main__ import main
from workbench.compose import composed_file
from workbench.data.prepare import Splits, prepare
from workbench.data.split import joined, overlaps
from workbench.errors import RequestError
from workbench.evaluation.gate import judge
from workbench.recipe import Gate, Recipe
from workbench.records import Example, Message
from workbench.runs import Run, staging_folder
from workbench.stages.disk_space import needed
from workbench.stages.evaluate import folds as folding
from workbench.stages.evaluate.arms import choose_shots
from workbench.stages.evaluate.evaluate import answerable
from workbench.stages.evaluate.folds import cut
from workbench.stages.train.task import keep_trained

FEW = "evaluate: {few_shot: 2,"


@pytest.fixture
def project(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fifty rows of which ten would judge alone, and a gate that asks for forty."""
    folder = new_project(tmp_path / "project", tiny_model)
    text = (folder / "mine.yaml").read_text().replace(FEW, "evaluate: {folds: 3, few_shot: 2,")
    text = text.replace("min_rows: 5", "min_rows: 40").replace("max_steps: 12", "max_steps: 4")
    (folder / "mine.yaml").write_text(text)
    monkeypatch.chdir(folder)
    return folder


def test_no_sibling_learns_a_row_that_it_is_asked_nor_anything_that_repeats_it(project: Path) -> None:
    rows = (project / "mine.csv").read_text()
    twin = rows.splitlines()[7].replace("Which colour has item", "Which colour has the item")
    quoted = " ".join(f"q{k}" for k in range(13))  # too little in common to be near copies, and more than may be shared
    rest = [" ".join(f"{name}{k}" for k in range(60)) for name in "xy"]
    repeats = [f'"{quoted} {rest[0]}",red', f'"{rest[1]} {quoted}",blue']
    (project / "mine.csv").write_text("\n".join([rows + twin, *repeats]) + "\n")
    recipe = composed_file("./mine.yaml")
    splits = prepare(recipe.data, recipe.seed)
    shots = choose_shots(splits, recipe)
    folds = cut(splits, shots, recipe)
    asked_ids = [{folds.rows[n].id for n in part} for part in folds.parts]
    assert max(map(len, asked_ids)) - min(map(len, asked_ids)) <= 1
    assert not {e.id for e in folds.items} & {e.id for e in shots}, "the baseline is shown them"
    assert all(not one & other for one, other in combinations(asked_ids, 2)), "each row is asked once"
    group = {folds.rows[row].id: number for number, rows in enumerate(joined(folds.rows).values()) for row in rows}
    for fold, part in enumerate(folds.parts):
        learned, looked_at = folds.others(fold)
        assert not {group[i] for i in asked_ids[fold]} & {group[e.id] for e in [*learned, *looked_at]}
        assert not overlaps([*learned, *looked_at], [folds.rows[n] for n in part], 13)
    one, other = (number for number, e in enumerate(folds.rows) if quoted in e.text)
    assert group[folds.rows[one].id] != group[folds.rows[other].id], "no near copies"
    learned, looked_at = replace(folds, parts=[[one], [other]], looks=frozenset()).others(0)
    assert len(learned) + len(looked_at) == len(folds.rows) - 2, "nor is the other one learned, which repeats it"
    twins = [e for e in folds.items if "item 6," in e.text]
    assert len({e.group for e in twins}) == 1, "near copies count once"
    recipe.evaluate.folds = 60
    with pytest.raises(RequestError, match="rows make"):
        cut(splits, shots, recipe)


@pytest.mark.parametrize(
    ("harm", "again", "words"),
    [
        (lambda out: None, 0, ""),
        (lambda out: (out / "model" / "model.safetensors").write_bytes(b"other"), 1, "is not as it was written"),
        (lambda out: (out / "model" / "model.safetensors").unlink(), 1, "model.safetensors is missing"),
        (lambda out: (out / "written.json").unlink(), 1, ""),  # killed before it was known to be whole
        (lambda out: (out / "written.json").write_text("{}"), 1, ""),
    ],
)
def test_a_sibling_that_is_not_as_its_training_left_it_is_trained_again_aloud(
    harm: Callable[[Path], object], again: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe, run, trained = Recipe(), Run(tmp_path, "mine", "x"), list[Path]()
    recipe.method.kind = "full"

    def train(*rest: object) -> None:
        out = rest[-1]
        assert isinstance(out, Path)
        for name in ("model/model.safetensors", "summary.json", "checkpoints/step-00000004/state.pt"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(name)
        keep_trained(out)
        trained.append(out)

    monkeypatch.setattr(folding, "train_sibling", train)
    ready = (recipe, run, tmp_path, None, 1, tmp_path / "folds")
    folding.engine_of(*ready)  # type: ignore[arg-type]
    assert not (trained[0] / "checkpoints").exists(), "what is whole goes on from none"
    harm(trained[0])
    folding.engine_of(*ready)  # type: ignore[arg-type]
    assert len(trained) == 1 + again
    shown = capsys.readouterr().err
    assert words in shown
    assert ("sibling 2 was trained, but" in shown) is bool(words)


def test_the_room_that_siblings_take_is_asked_for_before_the_first_is_trained(project: Path) -> None:
    recipe, run = composed_file("./mine.yaml"), Run(project, "mine", "x")
    (project / "run.json").write_text('{"stages": {}}')
    recipe.evaluate.folds = None
    assert needed(recipe, run, "evaluate") == 0
    recipe.evaluate.folds = 3
    three = needed(recipe, run, "evaluate")
    recipe.evaluate.folds = 5
    five = needed(recipe, run, "evaluate")
    assert three > five - three > 0, "each further one its adapter, and one at a time its checkpoints"
    there = staging_folder(run, "evaluate") / "folds"
    there.mkdir(parents=True)
    (there / "adapter.safetensors").write_bytes(bytes(1000))
    assert needed(recipe, run, "evaluate") == five - 1000


@pytest.mark.slow
def test_every_row_judges_and_the_report_says_whom_the_verdict_is_about(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "recipe=./mine.yaml", "debug=true"]) == 0
    shown = capsys.readouterr()
    assert "sibling 3 of 3" in shown.err
    run = only_run(project)
    report = json.loads((run / "evaluate" / "report.json").read_text())
    folds = report["folds"]
    assert report["n"] == folds["rows"] == sum(sibling["n"] for sibling in folds["siblings"]) == 48
    whole = sum(sibling["n"] * sibling["value"] for sibling in folds["siblings"]) / 48
    assert report["arms"]["student"]["exact_match"]["value"] == pytest.approx(whole, abs=1e-5)
    assert (folds["k"], folds["own_n"], folds["student_learned"]) == (3, 10, 35)
    assert 28 <= folds["learned"] <= 31, "of fifty rows, without sixteen and the five that training looks at"
    assert list(report["arms"]) == ["base", "base_few_shot", "student"]
    assert report["gate"]["checks"][0]["passed"], "forty are asked for"
    answers = run / "evaluate" / "predictions"
    ids = [json.loads(line)["id"] for line in (answers / "student.jsonl").read_text().splitlines()]
    assert len(set(ids)) == 48
    own = [json.loads(line) for line in (answers / "student.own.jsonl").read_text().splitlines()]
    right = sum(line["answer"].strip() == line["expected"] for line in own) / 10
    assert folds["own"]["value"] == pytest.approx(right)
    assert folds["own"]["ci_high"] > right, "ten rows alone say little"
    assert report["memorised"]["student"]["n"] == 10, "of the student that ships, not of its siblings"
    assert not (run / "evaluate" / "folds").exists(), "the siblings are not kept"
    (bundle,) = [run / name for name in stages(run) if name.startswith("bundle/")]
    for text in (shown.out, (run / "evaluate" / "report.html").read_text(), (bundle / "README.md").read_text()):
        words = " ".join(text.split())
        assert "udged by folds: each of 48 rows was asked of one of 3 siblings" in words
        assert "What ships is none of them" in words
        assert "48 test rows" not in words

    assert main(["evaluate", "recipe=./mine.yaml", "gate.better_by=-0.9"]) == 0
    assert "sibling 1" not in capsys.readouterr().err, "their answers are kept, and nothing is trained again"


def test_near_copies_among_the_test_rows_count_as_one_in_every_interval() -> None:
    def row(name: str, text: str, group: str = "", good: bool | None = None) -> Example:
        return Example(name, (Message("user", text), Message("assistant", "yes")), group=group, good=good)

    sentence = "the tenant returns all keys to the landlord on the last day of the term in good order"
    rows = [
        row("a", sentence),
        row("b", f"{sentence} please"),
        row("c", "who pays for the repair of the roof"),
        row("d", "may the owner enter", "one"),
        row("e", "what is owed in June", "one"),
        row("f", "no", good=False),
    ]
    items = answerable(Splits([], [], rows, [], [], []), cast(Run, SimpleNamespace(event=lambda *_, **__: None)))
    assert [item.id for item in items] == list("abcde")
    groups = [item.group or item.id for item in items]
    assert groups[0] == groups[1]
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3


def test_a_champion_that_may_have_learned_the_rows_is_not_passed_unseen() -> None:
    figures = {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95}
    report = {
        "n": 200, "primary": "exact_match", "confidence": 0.95, "arms": {"student": {"exact_match": figures}},
        "comparisons": [], "folds": {"k": 5, "rows": 200, "learned": 150, "student_learned": 140, "siblings": [],
                                     "own_n": 40, "own": None, "champion": "mine version 3"},
    }  # fmt: skip
    checks = {check["name"]: check for check in judge(report, Gate(), "exact_match", [])["checks"]}
    assert not checks["not_worse_than_champion"]["passed"]
    assert "mine version 3" in checks["not_worse_than_champion"]["why"]
    report["folds"]["champion"] = None
    assert "not_worse_than_champion" not in {c["name"] for c in judge(report, Gate(), "exact_match", [])["checks"]}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["quantize=[gguf_q8_0]"], "formats are held against the student itself"),
        (["method.learn=[dpo]"], "siblings learn the rows' answers alone"),
        (["data.test=file:mine.csv"], "the rows that judge are named"),
    ],
)
def test_what_folds_cannot_judge_is_refused(
    project: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "recipe=./mine.yaml", *words]) == 2
    assert why in capsys.readouterr().err
