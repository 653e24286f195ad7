"""An evaluation in MLflow: its intervals as metrics, its parts as tables, its pictures as artefacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tracking_runs import HandMade, new_experiments, whole_run
from whole_report import gate, whole_report
from workbench.pages.pictures import draw
from workbench.recipe import Tracking
from workbench.tracking import catch_up, store_uri
from workbench.tracking.store import connect


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return whole_report()[0]


@pytest.fixture(scope="module")
def pictures(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    draw({name: report[name] for name in ("n", "primary", "confidence", "arms", "comparisons", "metrics", "slices")}
         | {"arms": {arm: report["arms"][arm] for arm in ("base", "student")}}, folder)  # fmt: skip
    return folder


@pytest.fixture
def run(tmp_path: Path, report: dict[str, Any], pictures: Path) -> HandMade:
    made = whole_run(new_experiments(tmp_path / "experiments"))
    made.write("evaluate/report.json", json.dumps(report))
    for path in pictures.iterdir():
        made.write(f"evaluate/figures/{path.name}", path.read_bytes())
    return made


def feed(run: HandMade) -> tuple[Any, Path]:
    """The parent run as the store has it, and its artefacts."""
    experiments = run.folder.parent.parent
    fed = catch_up(run.folder, Tracking(), experiments)
    with connect(store_uri(Tracking(), experiments)) as client:
        stored = client.get_run(fed["run_id"])
        return stored, Path(client.download_artifacts(fed["run_id"], ""))


def test_what_decides_is_a_metric_and_every_interval_stands_in_a_table(run: HandMade, report: dict[str, Any]) -> None:
    for step in range(1, 4):
        for name in ("train/loss", "train/learning_rate", "train/grad_norm", "validation/loss"):
            run.event("metric", "train", name=name, value=1.0 / step, step=step)
    for name in ("base/exact_match", "base/exact_match_ci_low", "base/exact_match_ci_high"):
        run.event("metric", "evaluate", name=name, value=0.5, step=None)
    stored, folder = feed(run)
    metrics, primary = stored.data.metrics, report["primary"]
    assert len(metrics) == 40
    assert {"train/loss", "validation/loss", "train/learning_rate", "train/grad_norm"} <= set(metrics)
    assert not [name for name in metrics if name.endswith(("_ci_low", "_ci_high", "_p_value", "_p_holm"))]
    assert {f"{arm}/{primary}" for arm in report["arms"]} <= set(metrics)
    table = json.loads((folder / "evaluate/arms.json").read_text())
    rows = {(arm, metric): ends for arm, metric, *ends in table["data"]}
    for arm, cells in report["arms"].items():
        for metric, cell in cells.items():
            assert rows[arm, metric] == [cell.get(end) for end in ("value", "ci_low", "ci_high")]
    for name in ("general_accuracy", "refusals_refusals", "ece", "brier", "memorised"):
        assert rows["student", name][2] is not None
    table = json.loads((folder / "evaluate/comparisons.json").read_text())
    rows = {tuple(row[:3]): dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    row = next(r for r in report["comparisons"] if (r["candidate"], r["metric"]) == ("gguf_q4_k_m", "exact_match"))
    there = rows["gguf_q4_k_m", "student", "exact_match"]
    assert (there["ci_low"], there["p_holm"]) == (row["ci_low"], row["p_holm"])
    assert rows["student", "base", "general_accuracy"]["delta"] == -0.04


def test_no_run_has_more_than_forty_metrics(run: HandMade) -> None:
    for number in range(60):
        run.event("metric", "label", name=f"label/{number}", value=number, step=None)
        run.event("metric", "train", name=f"train/{number}", value=number, step=1)
    run.event("stage_started", "label")
    run.write("label/summary.json", "{}")
    run.done("label", "label", **{f"n{number}": number for number in range(60)})
    experiments = run.folder.parent.parent
    catch_up(run.folder, Tracking(), experiments)
    with connect(store_uri(Tracking(), experiments)) as client:
        stored = client.search_runs([e.experiment_id for e in client.search_experiments()])
        counts = {r.info.run_name: len(r.data.metrics) for r in stored}
        label = next(r for r in stored if r.info.run_name == "label")
        facts = json.loads(Path(client.download_artifacts(label.info.run_id, "facts.json")).read_text())
    assert max(counts.values()) == 40
    assert counts["label"] == 40
    assert ["n59", 59] in facts["data"], "what is constant stands in a table"


def test_slices_confusion_and_checks_are_tables_that_mlflow_offers(run: HandMade, report: dict[str, Any]) -> None:
    stored, folder = feed(run)
    told = [entry["path"] for entry in json.loads(stored.data.tags["mlflow.loggedArtifacts"])]
    assert told == ["samples.json"] + [f"evaluate/{name}.json" for name in
                    ("arms", "comparisons", "slices", "slice_differences", "gate", "confusion_macro_f1")]  # fmt: skip
    slices = json.loads((folder / "evaluate/slices.json").read_text())
    assert slices["columns"] == ["field", "slice", "n", "arm", "value", "ci_low", "ci_high"]
    assert len(slices["data"]) == len(report["slices"]) * len(report["arms"])
    counts = json.loads((folder / "evaluate/confusion_macro_f1.json").read_text())["data"]
    assert sum(row[3] for row in counts if row[0] == "student") == report["n"]


def test_pictures_stand_on_top_where_the_comparison_of_runs_finds_them(run: HandMade) -> None:
    # MLflow 3.17 offers, of what all the compared runs hold, the files that are in no folder.
    folder = feed(run)[1]
    assert sorted(p.name for p in folder.glob("*.svg")) == [
        "differences.svg", "forest.svg", "pareto.svg", "slices.svg"]  # fmt: skip
    assert not (folder / "images").exists()
    run.write("evaluate/figures/forest.svg", b"drawn anew")
    assert (feed(run)[1] / "forest.svg").read_bytes() == b"drawn anew"


def test_an_override_and_its_reason_are_tags(run: HandMade, report: dict[str, Any]) -> None:
    assert feed(run)[0].data.tags["gate"] == "passed"
    reason = "A. Reader, 3 May: the old model is wrong"
    run.write("evaluate/report.json", json.dumps(report | {"gate": gate(overridden=True, override=reason)}))
    tags = feed(run)[0].data.tags
    assert (tags["gate"], tags["gate.override"]) == ("overridden", reason)
    assert reason in tags["mlflow.note.content"]


def test_the_description_has_the_verdict_first_and_the_next_commands_last(
    run: HandMade, report: dict[str, Any]
) -> None:
    (run.folder / "evaluate/report.json").rename(run.folder / "later.json")
    note = feed(run)[0].data.tags["mlflow.note.content"]
    assert note.splitlines()[0] == "**No verdict yet**: nothing has been evaluated."
    assert "python -m workbench train recipe=tiny" in note
    (run.folder / "later.json").rename(run.folder / "evaluate/report.json")
    run.event("next", commands=["", "next:", "  python -m workbench ui"])
    note = feed(run)[0].data.tags["mlflow.note.content"]
    assert note.startswith("**Gate: passed**, ")
    head, _, *arms = [line for line in note.splitlines() if line.startswith("|")]
    assert head.split("|")[2].strip() == report["primary"]
    assert 3 <= head.count("|") <= 6, "MLflow's page is no wider than this"
    (student,) = [line for line in arms if line.startswith("| student |")]
    cell = report["arms"]["student"][report["primary"]]
    shares = [f"{100 * cell[end]:.1f}" for end in ("value", "ci_low", "ci_high")]
    assert student.split("|")[2].strip() == "{} % ({} to {})".format(*shares)
    assert "next:" not in note
    assert note.splitlines()[-2:] == ["", "`` python -m workbench ui ``"], (
        "a line that wraps: MLflow stays in its columns"
    )


def test_the_report_stands_on_top_of_the_artefacts(run: HandMade) -> None:
    _, folder = feed(run)
    assert (folder / "report.html").read_text() == "<h1>report</h1>"
    assert not (folder / "evaluate/report.html").exists()
