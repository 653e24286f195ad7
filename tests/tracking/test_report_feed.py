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


def test_every_figure_with_an_interval_is_a_metric_with_its_ends(run: HandMade, report: dict[str, Any]) -> None:
    metrics = feed(run)[0].data.metrics
    cell = report["arms"]["student"]["exact_match"]
    assert [metrics[f"student/exact_match{end}"] for end in ("", "_ci_low", "_ci_high")] == [
        cell["value"], cell["ci_low"], cell["ci_high"]]  # fmt: skip
    row = next(r for r in report["comparisons"] if (r["candidate"], r["metric"]) == ("gguf_q4_k_m", "exact_match"))
    start = "gguf_q4_k_m_vs_student/exact_match"
    assert metrics[f"{start}_delta_ci_low"] == row["ci_low"]
    assert metrics[f"{start}_p_holm"] == row["p_holm"]
    for name in ("general_accuracy", "refusals_refusals", "ece", "brier", "memorised"):
        assert f"student/{name}_ci_high" in metrics
    assert metrics["student_vs_base/general_accuracy_delta"] == -0.04


def test_slices_confusion_and_checks_are_tables_that_mlflow_offers(run: HandMade, report: dict[str, Any]) -> None:
    stored, folder = feed(run)
    told = [entry["path"] for entry in json.loads(stored.data.tags["mlflow.loggedArtifacts"])]
    assert told == [f"evaluate/{name}.json" for name in
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
