"""What a distillation proves: the share of the gain kept, what the next labels buy, what a cut student saves."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from bundle_project import new_project
from distil_project import RIGHT, SMALL, run_of, with_answers  # noqa: F401
from page_reader import FREE, Page, at, says
from teacher_project import Project, project, questions
from teacher_server import teacher_server
from tiny_gguf import write_tiny_gguf
from whole_report import context, whole_report
from workbench.__main__ import main
from workbench.compose import composed, find_recipe
from workbench.errors import RequestError
from workbench.evaluation import gate as gate_checks
from workbench.evaluation import statistics
from workbench.evaluation.answers import Prediction
from workbench.evaluation.attribution import faster, fieller, kept_lines, next_labels, share_kept
from workbench.evaluation.gate import judge
from workbench.evaluation.report import build_report
from workbench.pages.report_page import write_page
from workbench.recipe import Evaluate, Gate, Model, Recipe, Shrink, read
from workbench.records import Example, Message
from workbench.runs import Run
from workbench.stages.train.task import Start, Task
from workbench.stages.train.train import points_of, write_curve
from workbench.tracking.report_feed import report_metrics, report_tables
from workbench.training.development import Development
from workbench.training.shrink import counted, shrunk, student_size

ROOT = Path(__file__).parents[2]
EVALUATE = Evaluate(resamples=1000)
RATES = {"base_few_shot": 0.35, "student": 0.6, "gguf_q8_0": 0.58, "teacher": 0.7}  # of right answers, by arm
KEPT = (0.6 - 0.35) / (0.7 - 0.35)
RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("legal_*.yaml"))


# The share of the teacher's gain.


def test_fieller_s_interval_is_the_set_of_ratios_that_a_test_would_not_reject() -> None:
    spread = np.array([[4e-4, 2e-4], [2e-4, 5e-4]])
    low, high = fieller(0.25, 0.35, spread, 1.96) or (math.nan, math.nan)
    assert low < 0.25 / 0.35 < high
    for ratio in (low, high):
        width = 1.96 * math.sqrt(spread[0, 0] - 2 * ratio * spread[0, 1] + ratio**2 * spread[1, 1])
        assert abs(0.25 - ratio * 0.35) == pytest.approx(width)
    assert fieller(0.25, 0.04, spread, 1.96) is None, "a gain that may be nothing gives a set without an end"


def drawn(rng: Any, n: int, clusters: int) -> tuple[dict[str, Any], Any]:
    """Right answers of three arms on rows that are as hard for all of them, and alike within a cluster."""
    sizes = rng.dirichlet(np.full(clusters, 2.0)) if clusters < n else None
    clusters_n = np.arange(n) if sizes is None else np.sort(rng.choice(clusters, n, p=sizes))
    clusters_n = np.unique(clusters_n, return_inverse=True)[1]
    hard_g = rng.normal(size=clusters_n.max() + 1)[clusters_n]
    scores = {}
    for arm in ("student", "teacher", "base_few_shot"):
        # Half of what makes a row hard is its cluster's and the same for every arm, the rest is the arm's own luck.
        level = math.sqrt(0.5) * hard_g + math.sqrt(0.5) * rng.normal(size=n)
        scores[arm] = (level < normal_quantile(RATES[arm])).astype(float)
    return scores, clusters_n


def normal_quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


def coverage(n: int, clusters: int, times: int, seed: int) -> float:
    """How often the interval holds the true share."""
    rng, held, told = np.random.default_rng(seed), 0, 0
    for _ in range(times):
        scores, clusters_n = drawn(rng, n, clusters)
        columns = np.stack([np.ones(n), *scores.values()], axis=1)
        totals = statistics.resampled_totals(columns, clusters_n, 300, int(rng.integers(1 << 30)))
        draws = tuple(totals[:, k] / totals[:, 0] for k in (1, 2, 3))
        found = share_kept(tuple(s.mean() for s in scores.values()), draws, clusters_n, 0.95)  # type: ignore[arg-type]
        if found is not None and found.low is not None and found.high is not None:
            told += 1
            held += found.low <= KEPT <= found.high
    assert told > 0.9 * times
    return held / told


def test_the_interval_of_the_share_holds_the_truth_about_95_times_of_100() -> None:
    assert 0.92 < coverage(200, 200, 400, seed=1) < 0.98


@pytest.mark.proof
@pytest.mark.parametrize(("n", "clusters"), [(100, 100), (400, 400), (400, 80), (200, 30)])
def test_the_interval_of_the_share_holds_the_truth_with_few_rows_and_with_near_copies(n: int, clusters: int) -> None:
    assert 0.93 < coverage(n, clusters, 2000, seed=n + clusters) < 0.98


def arm(right: int, n: int = 400, *, last: bool = False, seconds: float = 0.5) -> list[Prediction]:
    """Answers of which the first (or last) so many are right."""
    rows = []
    for i in range(n):
        hit = i >= n - right if last else i < right
        rows.append(Prediction(f"row{i}", f"k{i}", "yes" if hit else "no", "yes", "stop", 9, 5, seconds, "", seconds))
    return rows


def report_of(**right: int) -> dict[str, Any]:
    """A report of arms with so many right answers of 400, held against base_few_shot."""
    rows = {name: arm(count) for name, count in right.items()}
    return build_report("legal", EVALUATE, rows, {}, seed=3, baseline="base_few_shot")


def test_the_report_of_a_taught_student_tells_the_share_that_it_and_its_formats_kept() -> None:
    report = report_of(base=0, base_few_shot=140, teacher=280, champion=200, student=266, gguf_q8_0=252)
    told = report["distillation"]
    assert (told["baseline"], told["metric"], told["why"]) == ("base_few_shot", "exact_match", None)
    assert list(told["kept"]) == ["student", "gguf_q8_0"], "what it was held against kept nothing"
    student = told["kept"]["student"]
    assert student["value"] == 0.9
    assert 0.8 < student["ci_low"] < 0.9 < student["ci_high"] < 1.0
    assert told["teacher_gain"]["value"] == 0.35
    assert told["teacher_gain"]["ci_low"] > 0.3
    again = report_of(base=0, base_few_shot=140, teacher=280, champion=200, student=266, gguf_q8_0=252)
    assert json.dumps(again) == json.dumps(report, allow_nan=False)
    (line,) = kept_lines(report)
    ends = f"{100 * student['ci_low']:.0f} to {100 * student['ci_high']:.0f}"
    assert line.startswith(f"student kept 90 % of the teacher's gain over base_few_shot (95 % interval {ends}); gguf_")


def test_a_run_without_a_teacher_has_the_report_it_always_had() -> None:
    rows = {"base_few_shot": arm(100), "student": arm(200)}
    plain = build_report("legal", EVALUATE, rows, {}, seed=3)
    assert json.dumps(build_report("legal", EVALUATE, rows, {}, seed=3, baseline="base_few_shot")) == json.dumps(plain)
    assert "distillation" not in plain
    assert kept_lines(plain) == []


def test_of_a_teacher_that_is_not_certainly_better_no_interval_is_told_and_of_a_worse_one_no_share() -> None:
    doubtful = report_of(base_few_shot=200, teacher=202, student=201)["distillation"]
    share = doubtful["kept"]["student"]
    assert (share["value"], share["ci_low"], share["ci_high"]) == (0.5, None, None)
    assert doubtful["why"].startswith("the teacher's own gain over base_few_shot is not certain (+0.5 points, 95 %")
    worse = report_of(base_few_shot=200, teacher=150, student=201)
    assert worse["distillation"]["kept"]["student"] == {"value": None, "ci_low": None, "ci_high": None}
    assert "not certain" in kept_lines(worse)[0]


def test_arms_that_never_differ_are_not_known_exactly() -> None:
    share = report_of(base_few_shot=0, teacher=400, student=400)["distillation"]["kept"]["student"]
    assert share["ci_low"] < share["value"] == 1.0 < share["ci_high"]
    assert share["ci_high"] - share["ci_low"] < 0.05


def test_a_share_of_a_macro_f1_is_taken_of_its_own_resamples() -> None:
    rows = {}
    for name, count in (("base_few_shot", 60), ("teacher", 160), ("student", 150)):
        rows[name] = [
            replace(p, expected=f"class {i % 3}", answer=f"class {i % 3 if p.answer == 'yes' else (i + 1) % 3}")
            for i, p in enumerate(arm(count, 200))
        ]
    evaluate = replace(EVALUATE, primary="macro_f1")
    told = build_report("legal", evaluate, rows, {}, seed=3, baseline="base_few_shot")["distillation"]
    assert told["metric"] == "macro_f1"
    assert told["kept"]["student"]["ci_low"] < told["kept"]["student"]["value"] < told["kept"]["student"]["ci_high"]


@pytest.mark.parametrize(("limit", "passes"), [(0.8, True), (0.95, False)])
def test_the_gate_holds_the_lower_end_of_the_share_only_where_a_limit_is_set(limit: float, passes: bool) -> None:
    report = report_of(base_few_shot=140, teacher=280, student=266)
    assert "kept_share" not in [c["name"] for c in judge(report, Gate(), "exact_match", [])["checks"]]
    found = judge(report, Gate(kept_share=limit), "exact_match", [])
    (check,) = [c for c in found["checks"] if c["name"] == "kept_share"]
    assert (check["passed"], found["passed"], check["limit"]) == (passes, passes, limit)
    assert check["value"] == report["distillation"]["kept"]["student"]["ci_low"]
    assert check["why"].startswith("student kept 90.0 % of the teacher's gain over base_few_shot (95 % interval ")
    assert ("more rows will not show it: label more rows" in check["why"]) is not passes


def test_a_limit_on_the_share_refuses_what_nobody_could_measure() -> None:
    without = gate_checks.kept_share(report_of(base_few_shot=140, student=266), Gate(kept_share=0.5))
    assert [(c["passed"], c["value"]) for c in without] == [(False, None)]
    assert "no teacher was asked" in without[0]["why"]
    doubtful = gate_checks.kept_share(report_of(base_few_shot=200, teacher=202, student=201), Gate(kept_share=0.5))
    assert not doubtful[0]["passed"]
    assert "not certain" in doubtful[0]["why"]


@pytest.mark.parametrize("words", [["teacher.api=none"], ["evaluate.teacher=false"]])
def test_a_limit_on_the_share_without_a_teacher_to_ask_is_refused_at_the_door(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        recipe_of(tmp_path, "gate.kept_share=0.9", *words)
    assert refused.value.where == "gate.kept_share"
    assert recipe_of(tmp_path, "gate.kept_share=0.9").gate.kept_share == 0.9


def recipe_of(folder: Path, *words: str) -> Recipe:
    own = {"defaults": ["workbench", "_self_"], "model": {"source": "dir:x"}, "data": {"train": "x.csv"},
           "teacher": {"api": "openai", "model": "m"}}  # fmt: skip
    (folder / "mine.yaml").write_text(json.dumps(own))
    return read(composed(find_recipe(str(folder / "mine.yaml")), list(words)), "mine")


# What the next labels would buy.


def test_the_curve_s_last_step_is_paired_row_by_row_and_told_as_points_a_doubling() -> None:
    rows = [float(i < 60) for i in range(100)]
    more, most = [float(i < 70) for i in range(100)], [float(i < 78) for i in range(100)]
    points = points_of([(250, rows), (500, more), (1000, most)], [""] * 100, Recipe())
    assert [p["labels"] for p in points] == [250, 500, 1000]
    assert "doubling" not in points[0]
    step = points[2]["doubling"]
    assert step["value"] == pytest.approx(0.08)
    assert 0.03 < step["ci_low"] < 0.08 < step["ci_high"] < 0.16, "unpaired it would hold zero"
    (twice,) = [p["doubling"]["value"] for p in points_of([(250, rows), (1000, most)], [""] * 100, Recipe())[1:]]
    assert twice == pytest.approx(0.18 / 2), "two doublings"


def test_a_point_of_the_curve_is_taken_up_only_as_its_training_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, told = list[str](), list[str]()

    def trainings(task: Task, start: Start, out: Path) -> Iterator[Path]:
        yield out
        (out / "checkpoints").mkdir(parents=True)
        (out / "development.json").write_text(json.dumps({"scores": [1.0, 0.0, 1.0]}))
        trained.append(out.name)

    monkeypatch.setattr("workbench.stages.train.train.jobs", trainings)
    monkeypatch.setattr("workbench.stages.train.train.trainer", lambda launch: lambda job: None)
    rows = [Example(f"e{n}", (Message("user", f"{n}?"), Message("assistant", "yes"))) for n in range(8)]
    task = Task(Recipe(), Run(tmp_path, "mine", "x"), tmp_path, rows, {}, {}, [], Development([], lambda n, a: 0.0, 4),
                lambda kind, **fields: told.append(str(fields.get("text"))))  # fmt: skip
    (tmp_path / "development.json").write_text(json.dumps({"scores": [1.0, 1.0, 1.0]}))
    (tmp_path / "curve" / "4").mkdir(parents=True)
    (tmp_path / "curve" / "4" / "summary.json").write_text("{}")  # killed before it was known to be whole
    for _ in range(2):
        write_curve(task, Start(tmp_path), ["a", "b", "c"], tmp_path)
    assert trained == ["2", "4"]
    scores = tmp_path / "curve" / "2" / "development.json"
    scores.write_text(scores.read_text().replace("0.0", "1.0"))
    write_curve(task, Start(tmp_path), ["a", "b", "c"], tmp_path)
    assert trained == ["2", "4", "2"]
    assert "the student of 2 labels was trained, but development.json is not as it was written" in "".join(told)


@pytest.mark.parametrize(
    ("cell", "says_so"),
    [
        ({"value": 0.021, "ci_low": 0.004, "ci_high": 0.04}, "would buy about as much while the curve goes on so"),
        ({"value": 0.021, "ci_low": -0.004, "ci_high": 0.04}, "no gain is certain"),
        ({"value": -0.03, "ci_low": -0.05, "ci_high": -0.01}, "is not likely to help"),
    ],
)
def test_one_sentence_says_what_the_next_labels_would_buy_and_no_more(cell: dict[str, float], says_so: str) -> None:
    told = next_labels(1600, 3200, cell, 0.95)
    assert says_so in told
    assert "6,400 labels" in told
    assert not re.search(r"\.(\s|$)", told), "one sentence"
    assert "12,800" not in told, "nothing is promised beyond one doubling"


# A smaller student.


def test_a_cut_model_s_size_is_known_before_it_is_cut(tiny_model: Path) -> None:
    cut = Shrink(1, "first")
    folder = shrunk(tiny_model, cut)
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        names = [name for name in stored.keys() if name != "lm_head.weight"]  # noqa: SIM118
        wanted = sum(math.prod(stored.get_slice(name).get_shape()) for name in names)
    assert counted(folder) == counted(tiny_model, cut) == (wanted, 1)
    assert counted(tiny_model)[1] == 2
    model = Model(source="dir:x", shrink=cut)
    assert student_size(model, tiny_model) == (wanted, 1)
    whole, layers = counted(tiny_model)
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    by_keys = replace(model, parameters=whole, layers=layers, hidden_size=64, vocabulary=vocabulary)
    assert student_size(by_keys, None)[0] == pytest.approx(wanted, rel=0.01)
    assert student_size(replace(by_keys, shrink=Shrink()), None) == (whole, 2)


def test_speed_is_compared_row_by_row_and_a_format_only_within_its_engine() -> None:
    rows = {
        "base": arm(0, seconds=0.6), "teacher": [replace(p, tokens_out=10) for p in arm(300, seconds=0.9)],
        "student": arm(280, seconds=0.3), "gguf_q8_0": arm(270, seconds=0.45),
    }  # fmt: skip
    engines = {"base": "transformers", "teacher": "llamacpp", "student": "transformers", "gguf_q8_0": "llamacpp"}
    told = faster(rows, engines, ["gguf_q8_0"])
    assert [(r["candidate"], r["baseline"], r["times"], r["times_a_token"], r["same_engine"]) for r in told] == [
        ("student", "base", 2.0, 2.0, True),
        ("student", "teacher", 3.0, 1.5, False),
        ("gguf_q8_0", "teacher", 2.0, 1.0, True),
    ]
    from_ledger = [replace(p, latency=None, seconds=1e-4) for p in rows["teacher"]]
    told = faster(rows | {"teacher": from_ledger}, engines, ["gguf_q8_0"])
    assert [r["baseline"] for r in told] == ["base"], "an answer from the ledger tells no time"


# The page and the record.


def evidence() -> dict[str, Any]:
    """Every part that the section can have, beside what the report takes of its own arms."""
    look = {"ci_low": 0.4, "ci_high": 0.63}
    return {
        "headroom": {"n": 100, "teacher": 0.71, "base": 0.11,
                     "lead": {"value": 0.6, "ci_low": 0.5, "ci_high": 0.7}},
        "development": {"n": 100, "loss_name": "validation loss", "score": {"value": 0.64, "ci_low": 0.54,
                        "ci_high": 0.73}, "points": [{"step": s, "value": 0.5, **look, "loss": 2 / s}
                                                     for s in (40, 80, 120)]},
        "curve": {"points": [{"labels": n, "value": 0.5, **look} for n in (400, 800, 1600)],
                  "doubling": {"value": 0.02, "ci_low": -0.01, "ci_high": 0.05},
                  "sentence": next_labels(800, 1600, {"value": 0.02, "ci_low": -0.01, "ci_high": 0.05}, 0.95)},
        "smaller": {"base": {"parameters": 134_515_008, "layers": 30},
                    "student": {"parameters": 81_413_568, "layers": 15},
                    "faster": [{"candidate": "student", "baseline": "base", "times": 1.83, "times_a_token": 1.71,
                                "same_engine": True, "n": 400}]},
        "gold_student": {"named": "models:/legal_lora@champion", "source": "mlflow:models:/legal_lora/3",
                         "identity": "legal_lora/3", "absent": ""},
    }  # fmt: skip


def with_evidence() -> tuple[dict[str, Any], dict[str, list[Prediction]]]:
    """A whole report of a distillation with its answers, measured once and copied for each test."""
    return copy.deepcopy(measured_with_evidence())


@cache
def measured_with_evidence() -> tuple[dict[str, Any], dict[str, list[Prediction]]]:
    report, predictions = whole_report()
    settings = Evaluate(scorer="exact_match", labels=report["labels"], resamples=1000)
    own = build_report("notices", settings, predictions, {}, seed=5, baseline="base_few_shot")["distillation"]
    check = {"name": "kept_share", "arm": "student", "passed": True, "value": 0.6, "limit": 0.5, "why": "it kept it"}
    gate = report["gate"] | {"checks": [*report["gate"]["checks"], check]}
    return report | {"distillation": own | evidence(), "gate": gate}, predictions


def html_of(folder: Path, report: dict[str, Any], predictions: Any) -> str:
    write_page(report, predictions, folder / "report.html", title="legal", context=context(predictions))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_figure_of_the_section_is_quoted_from_the_report_and_no_other_stands_there(tmp_path: Path) -> None:
    report, predictions = with_evidence()
    html = html_of(tmp_path, report, predictions)
    page = Page(html)
    assert page.open == []
    quoted = [one for one in page.quoted if one[0].startswith("/distillation/")]
    assert len(quoted) > 40
    for pointer, kind, exact, text in quoted:
        value = at(json.loads(json.dumps(report)), pointer)
        assert exact is None or json.loads(exact) == value, pointer
        assert says(text, kind, value), f"{pointer}: {text!r} is not {value!r} as {kind}"
    told = {pointer.split("/")[2] for pointer, *_ in quoted}
    assert told == {"teacher_gain", "kept", "headroom", "development", "curve", "smaller", "gold_student"}
    names = re.compile("|".join([*report["arms"], "F1", r"p\d\d", "1,000", r"^\d+ more"]))
    assert [words for words in page.around if re.search(r"\d", names.sub("", words.strip()))] == []
    assert FREE.search("curvebox")
    drawn = html[html.index('id="distillation"') :]
    dot = re.search(r"<title>student kept [^<]*</title>.*?<circle cx=\"([\d.]+)%\"", drawn)
    assert dot
    assert 0 < float(dot[1]) < 100
    assert "the gate's limit" in drawn[: drawn.index("Headroom before training")]


@pytest.mark.parametrize("part", ["kept", "headroom", "development", "curve", "smaller", "gold_student"])
def test_a_part_that_is_not_there_leaves_no_trace_on_the_page(part: str, tmp_path: Path) -> None:
    report, predictions = with_evidence()
    headings = {"kept": "share of it that was kept", "headroom": "Headroom before", "development": "Every look",
                "curve": "by the labels learned", "smaller": "A smaller student",
                "gold_student": "The gold-only"}  # fmt: skip
    heading = headings[part]
    assert heading in html_of(tmp_path, report, predictions)
    less = {name: told for name, told in report["distillation"].items() if name != part}
    told = html_of(tmp_path, report | {"distillation": less}, predictions)
    assert heading not in told
    assert Page(told).open == []
    alone = {part: report["distillation"][part]}
    if part != "kept":
        assert heading in html_of(tmp_path, report | {"distillation": alone}, predictions)


def test_without_an_interval_the_page_says_why(tmp_path: Path) -> None:
    rows = {"base_few_shot": arm(200), "teacher": arm(202), "student": arm(201)}
    report = build_report("legal", EVALUATE, rows, {}, seed=3, baseline="base_few_shot")
    html = html_of(tmp_path, report, rows)
    assert 'data-path="/distillation/why"' in html
    worse = build_report("legal", EVALUATE, rows | {"teacher": arm(150)}, {}, seed=3, baseline="base_few_shot")
    assert Page(html_of(tmp_path, worse, rows)).open == []


def test_mlflow_is_told_the_share_with_its_interval_and_the_rest_of_the_evidence() -> None:
    report, _ = with_evidence()
    told = report_metrics(report, 40)
    share = report["distillation"]["kept"]["student"]
    assert told["student/kept_share"] == share["value"]
    assert told["teacher_vs_base_few_shot/exact_match_delta"] > 0
    assert (told["student/parameters"], told["student_vs_base/times"]) == (81_413_568, 1.83)
    assert told["curve/doubling"] == 0.02
    rows = report_tables(report)["evaluate/arms.json"]["data"]
    assert ["student", "kept_share", *share.values()] in rows
    ordinary, _ = whole_report()
    assert not [name for name in report_metrics(ordinary, 40) if "kept_share" in name or "teacher_vs" in name]


# Through the door.


# Two of them show the most; each takes seconds.
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_the_licence_notices_has_a_plan(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", f"recipe={name}", "output=json", f"launch.experiments={tmp_path / 'experiments'}"]) == 0
    told = json.loads(capsys.readouterr().out)
    recipe = read(composed(find_recipe(name), []), name)
    assert ("distillation" in told) is bool(recipe.method.distil)
    assert ("student" in told["model"]) is (recipe.model.shrink.layers is not None)
    taught = recipe.teacher.api != "none" or recipe.teacher.weights is not None
    assert ("teacher" in told["evaluation"]["arms"]) is taught
    if recipe.method.distil:
        assert told["distillation"]["learns"] == ", then ".join(recipe.method.distil).replace("_", "-")
        assert re.match(r"[\d,]+", told["distillation"]["prompts"])
    if recipe.model.shrink.layers is not None:
        assert f"{recipe.model.shrink.layers} of {recipe.model.layers} layers" in told["model"]["student"]


QUICK = ["evaluate.energy=false", "evaluate.general=null", "evaluate.harmful=null", "evaluate.champion=false"]
SHIPS = ["gate.baseline=base", "gate.better_by=-1.0", "gate.slice_margin=null", "gate.memorised=null"]


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU build has no kernel for heads as small as the tiny model's."""


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's part of these lives is held elsewhere."""
    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)


def report_in(made: Project) -> dict[str, Any]:
    return json.loads((run_of(made) / "evaluate" / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("without_vllm", "untracked")
def test_a_cut_student_s_adapter_is_asked_bundled_and_verified_on_the_cut_model_and_all_its_evidence_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with teacher_server(answer=[["", "yes"]]) as server:
        made = project(tmp_path, questions(24), server.url + "/v1")
        with_answers(made)
        gold = json.loads((tmp_path / "mine.yaml").read_text()) | {"teacher": {"api": "none"}}
        (tmp_path / "gold.yaml").write_text(json.dumps(gold))
        same = [f"model.source=dir:{tiny_model}", "model.shrink.layers=1", "model.layers=0", *QUICK]
        small = [word for word in SMALL if "recipe=" not in word]
        assert made.run("train", "recipe=./gold.yaml", *small, *same, "until=merge").returncode == 0
        (other,) = [p.parent for p in tmp_path.glob("experiments/gold/*/run.json")]
        words = [*SMALL, *same, *SHIPS, "method.distil=[text]", "method.teach.curve=true", "method.epochs=20",
                 "bundle.adapter=true", "bundle.parity_rows=4", "evaluate.few_shot=0",
                 f"evaluate.gold_student={other.relative_to(tmp_path)}"]  # fmt: skip
        done = made.run("train", *words, "until=bundle")
        assert done.returncode == 0, done.stderr
        assert "nothing left to do" in made.run("train", *words, "until=bundle").stderr
    report = report_in(made)
    assert list(report["arms"]) == ["base", "teacher", "gold_student", "adapter", "student"]
    sizes = {name: report["arms"][name]["bytes"]["value"] for name in ("base", "student", "adapter")}
    assert sizes["student"] < sizes["adapter"] < sizes["base"], "a layer and an adapter are less than two layers"
    told = report["distillation"]
    assert told["baseline"] == "base"
    assert told["teacher_gain"]["value"] == 1.0
    assert set(told["kept"]) == {"student"}
    assert [told["smaller"][arm]["layers"] for arm in ("base", "student")] == [2, 1]
    assert told["smaller"]["student"]["parameters"] < told["smaller"]["base"]["parameters"]
    assert [(r["candidate"], r["baseline"]) for r in told["smaller"]["faster"]] == [
        ("student", "base"), ("student", "teacher")
    ]  # fmt: skip
    assert told["headroom"]["n"] == told["development"]["n"] == 12
    assert [p["step"] for p in told["development"]["points"]] == sorted(
        {p["step"] for p in told["development"]["points"]}
    )
    assert [p["labels"] for p in told["curve"]["points"]] == [6, 12, 24]
    assert "48 labels" in told["curve"]["sentence"]
    assert told["gold_student"]["named"] == str(other.relative_to(tmp_path))
    assert ("student", "gold_student") in {(r["candidate"], r["baseline"]) for r in report["comparisons"]}
    assert "student kept" in " ".join(done.stdout.split()), "and the terminal says it"
    assert not [c for c in report["gate"]["checks"] if "gold" in c["why"]], "told, not judged"
    assert 'id="distillation"' in (run_of(made) / "evaluate" / "report.html").read_text()

    # The unmerged adapter says what the merged student does: on another model it would not.
    answers = {
        name: [json.loads(line)["answer"] for line in (run_of(made) / f"evaluate/predictions/{name}.jsonl").open()]
        for name in ("adapter", "student")
    }
    assert sum(a == b for a, b in zip(*answers.values(), strict=True)) >= 10
    bundle = run_of(made) / "bundle" / "adapter"
    manifest = json.loads((bundle / "MANIFEST.json").read_text())
    assert manifest["base"]["shrink"] == {"layers": 1, "keep": "spread"}
    assert "cut to 1 layer " in (bundle / "serve_lora_vllm.sh").read_text()
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["verify", f"bundle={bundle}", "engine=transformers", "output=json"]) == 0
    checks = {c["name"]: c["passed"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["kl"] is True


@pytest.mark.slow
@pytest.mark.usefixtures("without_vllm")
def test_a_gold_student_is_a_registered_model_too_and_stands_where_the_registry_is_away(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = new_project(tmp_path / "project", tiny_model)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    assert main(["train", "recipe=./mine.yaml"]) == 0
    (folder / "other.yaml").write_text((folder / "mine.yaml").read_text())
    words = ["train", "recipe=./other.yaml", "method.learning_rate=1e-2", "evaluate.champion=false", "until=evaluate",
             "evaluate.gold_student=models:/mine@champion"]  # fmt: skip
    assert main(words) == 0
    (run,) = [p.parent for p in folder.glob("experiments/other/*/run.json")]
    report = json.loads((run / "evaluate" / "report.json").read_text())
    assert report["distillation"]["gold_student"]["source"] == "mlflow:models:/mine/1"
    assert "gold_student" in report["arms"]
    assert "kept" not in report["distillation"], "there is no teacher"
    capfd.readouterr()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(words) == 0
    assert "nothing left to do" in capfd.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main([*words[:-1], "evaluate.gold_student=models:/nobody@champion"]) == 2
    assert "evaluate.gold_student" in capfd.readouterr().err


FAULTS = {
    "another base": "tuned from hf:a/b", "a teacher": "learned from a teacher", "itself": "very run",
    "nothing there": "no such file", "not merged": "no merged model",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("without_vllm", "untracked")
def test_a_gold_student_that_is_none_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    with teacher_server(answer=[["", "yes"]]) as server:
        made = project(tmp_path, questions(12), server.url + "/v1")
        words = [*SMALL, *QUICK, f"model.source=dir:{tiny_model}", "evaluate.few_shot=0", "gate.baseline=base",
                 "evaluate.adapter=false", "evaluate.teacher=false"]  # fmt: skip
        assert made.run("train", *words, "until=merge").returncode == 0
        run = run_of(made)
        for fault, wanted in FAULTS.items():
            named = planted(fault, run, tmp_path, tiny_model)
            done = made.run("train", *words, f"evaluate.gold_student={named}", "until=evaluate")
            assert done.returncode == 2, fault
            assert wanted in " ".join(done.stderr.split()), fault


def planted(fault: str, run: Path, home: Path, model: Path) -> str:
    """The name of a folder that looks like a finished run but for one fault."""
    other = home / fault.replace(" ", "_")
    if fault == "itself":
        os.symlink(run, other)
    elif fault != "nothing there":
        (other / "merge").mkdir(parents=True)
        os.symlink(run / "merge" / "model", other / "merge" / "model")
        manifest = json.loads((run / "run.json").read_text())
        if fault == "not merged":
            del manifest["stages"]["merge"]
        (other / "run.json").write_text(json.dumps(manifest))
        told = {"model": {"source": "hf:a/b" if fault == "another base" else f"dir:{model}"},
                "teacher": {"api": "openai" if fault == "a teacher" else "none"}, "data": {}}  # fmt: skip
        (other / "recipe.yaml").write_text(json.dumps(told))
    return other.name


@pytest.mark.slow
@pytest.mark.usefixtures("without_vllm", "untracked")
def test_a_local_teacher_is_asked_every_test_row_anew_whatever_it_was_asked_for_labels(
    yes_model: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    write_tiny_gguf(yes_model, tmp_path / "teacher.gguf")
    made = project(tmp_path, questions(24), "", api="local_gguf", source="file:teacher.gguf", route="own", family="",
                   key_variable=None, max_new_tokens=8, concurrency=4)  # fmt: skip
    recipe = json.loads((tmp_path / "mine.yaml").read_text())
    recipe["teacher"].pop("base_url")
    recipe["teacher"]["price"] = {"input_mtok": 0.0, "output_mtok": 0.0}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    words = [*SMALL, *QUICK, f"model.source=dir:{tiny_model}", "method.distil=[text]", "evaluate.adapter=false"]
    asked = "SELECT COUNT(DISTINCT row) FROM attempts WHERE kind != 'probe' AND state = 'settled'"
    assert made.run("train", *words, "until=merge").returncode == 0
    assert made.ledger(asked) == [(24 + 12,)], "the prompts, and the development rows"
    done = made.run("train", *words, "until=evaluate")
    assert done.returncode in (0, 3), done.stderr
    assert made.ledger(asked) == [(24 + 12 + 12,)], "and every test row, none of which it had seen"
    rows = [json.loads(x) for x in (run_of(made) / "evaluate/predictions/teacher.jsonl").open()]
    assert [row["answer"] for row in rows] == ["yes"] * 12
    assert report_in(made)["arms"]["teacher"]["exact_match"]["value"] == 1.0
    assert report_in(made)["distillation"]["teacher_gain"]["value"] == 1.0
