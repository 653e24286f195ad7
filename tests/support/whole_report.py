"""A report with every part that a page can show, and the answers behind it. No test lives here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.answers import Prediction
from workbench.evaluation.report import build_report
from workbench.recipe.schema import Evaluate

LABELS = ("Copyleft", "Permissive", "Proprietary Free", "Public Domain")
SURE = {"base": 0.02, "base_few_shot": 0.42, "teacher": 0.82, "adapter": 0.74, "student": 0.74, "gguf_q8_0": 0.74,
        "gguf_q4_k_m": 0.62, "champion": 0.66}  # fmt: skip
FORMATS = ("gguf_q8_0", "gguf_q4_k_m")
N = 120


def cell(value: float, half: float = 0.04) -> dict[str, float]:
    """A figure with an interval."""
    return {"value": value, "ci_low": round(max(0.0, value - half), 6), "ci_high": round(min(1.0, value + half), 6)}


def pair(candidate: str, baseline: str, delta: float, half: float = 0.05) -> dict[str, Any]:
    """A paired difference with its interval."""
    return {"candidate": candidate, "baseline": baseline, "delta": delta, "ci_low": round(delta - half, 6),
            "ci_high": round(delta + half, 6), "p_value": 0.0213, "p_holm": 0.0852}  # fmt: skip


def answers(arm: str, n: int = N) -> list[Prediction]:
    """Label answers that are right as often as SURE says; the same rows are hard for every arm."""
    rows = []
    for i in range(n):
        wanted = LABELS[i * i % 7 % 4]
        hard = random.Random(i).random() + 0.12 * (random.Random(f"{arm}{i}").random() - 0.5)
        wrong = LABELS[(LABELS.index(wanted) + 1 + i % 3) % 4]
        said = wanted if hard < SURE[arm] else wrong
        rows.append(Prediction(f"notice {i}", f"{arm}{i}", said, wanted, "stop", 60, 4, 0.1 + len(arm) / 100, f"g{i}"))
    return rows


def whole_report(arms: Sequence[str] = tuple(SURE)) -> tuple[dict[str, Any], dict[str, list[Prediction]]]:
    """Every part of report.json, its shapes as the stage writes them, on label answers."""
    predictions = {arm: answers(arm) for arm in arms}
    facts = {
        arm: {"bytes": 1.05e8 + 4e7 * i, "peak_memory_bytes": 9e8 + 3e8 * i, "answers_per_second": 7.9 - i / 3,
              "batch_seconds_p50": 0.21 + i / 50, "batch_seconds_p95": 0.43 + i / 40,
              "batch_first_token_p50": 0.061 + i / 900,
              "kwh_per_1000": 0.0041 + i / 3000, "usd_per_1000": 0.021 + i / 90}
        for i, arm in enumerate(arms)
    }  # fmt: skip
    evaluate = Evaluate(scorer="exact_match", labels=list(LABELS), resamples=1000)
    report = build_report("notices", evaluate, predictions, facts, seed=5)
    primary = report["primary"]
    for row in report["comparisons"]:
        row["p_holm"] = None if row["p_value"] is None else min(1.0, round(3 * row["p_value"], 6))
    for arm in arms:
        report["arms"][arm]["constrained_" + primary] = cell(SURE[arm] + 0.02)
    report["metrics"]["constrained_" + primary] = report["metrics"][primary] | {"meaning": "under its schema"}
    asked = predictions["student"]
    report["slices"] = slices(arms, [p.id for p in asked])
    report["calibration"] = {arm: calibration(SURE[arm]) for arm in arms if arm != "teacher"}
    report["confusion"] = {"macro_f1": {"labels": list(LABELS), "arms": {a: confusion(predictions[a]) for a in arms}}}
    report["general"] = {"n": 60, "arms": {arm: {"accuracy": cell(0.4 if arm == "base" else 0.36)} for arm in arms},
                         "comparisons": [pair("student", "base", -0.04) | {"metric": "accuracy"}]}  # fmt: skip
    report["refusals"] = {"n": 40, "arms": {arm: {"refusals": cell(0.7)} for arm in ("base", "student")},
                          "comparisons": [pair("student", "base", 0.0) | {"metric": "refusals"}]}  # fmt: skip
    repeated = {"id": "notice 7", "words": "redistribution and use in source and binary forms", "train": "bsd_1"}
    report["memorised"] = {"student": cell(0.008, 0.008) | {"n": N, "rows": [repeated]}}
    report["judge"] = {"model": "judge-1", "family": "oak", "consistency": 0.86, "kappa": 0.62, "kappa_n": 50,
                       "told_the_judge": {"student": 0, "base": 1}, "usd": 0.42}  # fmt: skip
    report["duties"] = [
        {"duty": "name the source", "met": True, "why": "ATTRIBUTION stands in the bundle"},
        {"duty": "teacher's terms", "met": False, "why": "the terms were not acknowledged"},
    ]
    report["formats"] = [arm for arm in FORMATS if arm in arms]
    report["engines"] = {arm: "llamacpp" if arm in FORMATS else "transformers" for arm in arms}
    joints = (("training", "teacher", "adapter"), ("merging", "adapter", "student"),
              ("quantizing", "student", "gguf_q8_0"), ("quantizing", "student", "gguf_q4_k_m"))  # fmt: skip
    report["chain"] = [
        pair(after, before, -0.12 if "q4" in after else 0.01, 0.04)
        | {"joint": joint, "before": before, "after": after, "metric": primary, "kl": 0.0031,
           "top_token_agreement": 0.981, "lost": "q4" in after}
        for joint, before, after in joints
    ]  # fmt: skip
    report["gate"] = gate()
    return report, predictions


def slices(arms: Sequence[str], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Ten slices of the rows, the worst first."""
    found = []
    for i in range(10):
        own = list(ids[i * 10 : i * 10 + 20])
        found.append(
            {"field": ("length", "label", "source")[i % 3], "value": f"part {chr(97 + i)} of all", "n": len(own),
             "items": own, "arms": {arm: cell(min(0.9, 0.3 + i / 20), 0.11) for arm in arms},
             "comparisons": [pair("student", "base_few_shot", round(-0.08 + i / 40, 6)),
                             pair("gguf_q4_k_m", "student", -0.05)]}
        )  # fmt: skip
    return found


def calibration(sure: float) -> dict[str, Any]:
    """Five bins of an arm that is a little too sure."""
    bins = [
        {"low": b / 5, "high": (b + 1) / 5, "n": 4 + 9 * b, "confidence": b / 5 + 0.1,
         "right": round(max(0.0, (b / 5 + 0.1) * (0.5 + sure / 2)), 6)}
        for b in range(5)
    ]  # fmt: skip
    return {"ece": cell(0.08, 0.02), "brier": cell(0.19, 0.03), "n": N, "bins": bins}


def confusion(rows: Sequence[Prediction]) -> list[list[int]]:
    """Counts, what was wanted by row."""
    counts = [[0] * len(LABELS) for _ in LABELS]
    for row in rows:
        counts[LABELS.index(row.expected)][LABELS.index(row.answer)] += 1
    return counts


def gate(**changes: Any) -> dict[str, Any]:
    """A verdict that lets the student and one format ship."""
    held = ("enough_rows", "better_than_baseline", "not_worse_than_champion", "slices", "forgetting", "memorised")
    checks = [check(name, "student") for name in held]
    checks += [check("latency", arm, limit=None) for arm in ("student", *FORMATS)]
    checks += [check("not_worse_than_student", arm, passed=arm != "gguf_q4_k_m") for arm in FORMATS]
    return {"passed": True, "checks": checks, "shipped": ["student", "gguf_q8_0"], "refused": ["gguf_q4_k_m"],
            "baseline": "base_few_shot", "override": None, "overridden": False,
            "sentence": "the student may ship"} | changes  # fmt: skip


def check(name: str, arm: str, *, passed: bool = True, limit: float | None = 0.02) -> dict[str, Any]:
    """One check."""
    why = f"{arm} {'held' if passed else 'missed'} its limit by 3.1 points (95 % interval +1.0 to +5.2)"
    return {"name": name, "arm": arm, "passed": passed, "value": 0.031, "limit": limit, "why": why}


def context(predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, Any]:
    """What the stage hands to the page beside the report."""
    prompts = {p.id: f"Which licence is this? Words of notice number {p.id}" for p in predictions["student"]}
    train: list[dict[str, Any]] = [{"step": s, "loss": 2.5 / s + 0.2 + 0.05 * (s % 3)} for s in range(1, 81)]
    train += [{"step": s, "eval_loss": 0.35 - s / 800} for s in (40, 80)]
    train += [{"step": s, "learning_rate": 1e-3 * (81 - s) / 80, "grad_norm": 3 / s, "memory_gb": 1.4,
               "tokens_per_second": 700 + s} for s in range(1, 81, 8)]  # fmt: skip
    return {
        "prompts": prompts, "train": train, 
        "recipe": {"method": {"kind": "lora", "rank": 16}, "launch": {"usd_per_hour": 1.2}}, "constrained": {},
        "curve": [{"rows": n, **cell(0.3 + n / 9000, 0.06)} for n in (500, 1000, 2000, 4000)],
        "manifest": {"digest": "4f1c09ab", "versions": {"torch": "2.13.0"}, "stages": {
            "label": {"seconds": 61.0, "facts": {"usd": 0.42}},
            "train": {"seconds": 366.0}, "merge": {"seconds": 24.0}}},
        "teacher": {"model": "oak-70b", "terms": "outputs may train models"},
        "datasets": [{"name": "notices", "role": "test", "rows": N, "digest": "d1"}],
    }  # fmt: skip
