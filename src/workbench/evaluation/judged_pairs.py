"""Every pair judged once: verdicts kept as they come, never asked again, and what they say of each arm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation import canary
from workbench.evaluation.answers import Prediction, drop_broken_end
from workbench.evaluation.judge import (
    TIE,
    Hide,
    Pair,
    Question,
    Ruling,
    Side,
    pair_of,
    questions_of,
    ruling,
    speaks,
    verdict_in,
)
from workbench.evaluation.statistics import Floats, Ints, share_interval
from workbench.files import write_whole
from workbench.recipe.schema import Evaluate
from workbench.records import canonical

PEOPLE = "people"  # the file of the pairs that people have judged too
Heard = Callable[[int, str, float], None]  # the question's place, the reply, its cost in USD
Ask = Callable[[Sequence[Question], Heard], None]


@dataclass(frozen=True)
class Human:
    """A pair that a person has judged."""

    id: str
    prompt: str
    a: str
    b: str
    winner: Side


@dataclass(frozen=True)
class Bench:
    """Who judges and by what: `judge` names the model and where it answers; `folders` hold verdicts given before."""

    evaluate: Evaluate
    judge: str
    seed: int
    ask: Ask
    hide: Hide
    folder: Path
    earlier: Path | None = None


def judge_arms(
    bench: Bench,
    predictions: Mapping[str, Sequence[Prediction]],
    prompts: Mapping[str, str],
    baseline: str,
    people: Sequence[Human] = (),
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """(`{arm: {item id: 1 better, 0.5 alike, 0 worse than the baseline's answer}}`, report.json's `judge`).

    The baseline against itself is 0.5 throughout, and so are answers equal to its own, which nobody is asked about.
    """
    if baseline not in predictions:
        raise WorkbenchError(
            f"the judge holds every arm against {baseline}, which has no answers",
            where="gate.baseline",
            remedy="gate.baseline=base",
        )
    against = predictions[baseline]
    pairs = {
        arm: [
            pair_of(p.id, prompts.get(p.id, ""), p.expected, p.answer, other.answer, bench.hide)
            for p, other in zip(rows, against, strict=True)
        ]
        for arm, rows in predictions.items()
        if arm != baseline
    }
    if people:
        pairs[PEOPLE] = [pair_of(h.id, h.prompt, "", h.a, h.b, bench.hide) for h in people]
    rulings, facts = judge_pairs(bench, pairs)
    verdicts = {arm: {p.id: 0.5 for p in against} for arm in (baseline,)}
    verdicts |= {
        arm: {p.id: r.value for p, r in zip(rows, rulings[arm])} for arm, rows in pairs.items() if arm != PEOPLE
    }
    verdicts = {arm: verdicts[arm] for arm in predictions}
    spoke = set(facts.pop("spoke", ()))
    turned = {arm: {p.id for p in pairs.get(arm, ()) if p.a in spoke} for arm in predictions}
    turned[baseline] = {p.id for rows in pairs.values() for p in rows if p.b in spoke}
    speaking = {arm: sum(speaks(p.answer) or p.id in turned[arm] for p in rows) for arm, rows in predictions.items()}
    by_judge = [r.winner for r in rulings.get(PEOPLE, ())]
    confidence = bench.evaluate.confidence
    about = {
        "model": bench.evaluate.judge.model or bench.evaluate.judge.source or "",
        "family": bench.evaluate.judge.family,
        "own_family": bench.evaluate.judge.own_family,
        "criteria": bench.evaluate.judge.criteria,
        "least_consistency": bench.evaluate.judge.least_consistency,
        "least_kappa": bench.evaluate.judge.least_kappa,
        "baseline": baseline,
        **facts,
        **agreement([h.winner for h in people], by_judge, confidence, bench.seed),
        "told_the_judge": speaking,
    }
    return verdicts, about


def judge_pairs(bench: Bench, pairs: Mapping[str, Sequence[Pair]]) -> tuple[dict[str, list[Ruling]], dict[str, Any]]:
    """Each pair's ruling by name, and what the verdicts show of the judge: consistency, place, cost, who spoke."""
    criteria = bench.evaluate.judge.criteria
    questions: dict[str, list[tuple[Question, Question] | None]] = {
        name: [None if p.equal else questions_of(p, bench.judge, criteria, bench.seed) for p in rows]
        for name, rows in pairs.items()
    }
    flat = {q.key: (name, q) for name, both in questions.items() for two in both if two for q in two}
    known = gathered(bench, flat)
    verdicts = {
        name: [(side_in(known, two[0]), side_in(known, two[1])) if two else (None, None) for two in both]
        for name, both in questions.items()
    }
    rulings = {name: [ruling(p, *verdicts[name][i]) for i, p in enumerate(rows)] for name, rows in pairs.items()}
    spoke, facts = (set[str](), {}) if not bench.evaluate.judge.controls else spoken(bench, pairs, rulings, verdicts)
    alike: dict[str, bool] = {}
    for name, rows in pairs.items():
        for place, (pair, two) in enumerate(zip(rows, questions[name], strict=True)):
            turned = (pair.a in spoke, pair.b in spoke)
            rulings[name][place] = ruling(pair, *verdicts[name][place], turned)
            if two:
                alike[two[0].key] = bool(rulings[name][place].alike)
        write_lines(
            bench.folder / f"{name}.jsonl",
            [known[q.key] for two in questions[name] if two for q in two if q.key in known],
        )
    for stale in bench.folder.glob("*.jsonl"):
        if stale.stem not in (*pairs, canary.NAME):
            stale.unlink()
    lines = [known[key] for key in flat if key in known]
    firm = [line for line in lines if line["better"] not in (None, TIE)]
    return rulings, {
        **consistency(list(alike.values()), bench.evaluate.confidence),
        "first_share": sum(line["better"] == line["first"] for line in firm) / len(firm) if firm else None,
        "unheard": sum(ruling.unheard for ruled in rulings.values() for ruling in ruled),
        "usd": sum(line["usd"] for line in lines) + facts.pop("usd", 0.0),
        **facts,
    }


def side_in(known: Mapping[str, Mapping[str, Any]], question: Question) -> Side | None:
    """The verdict on a question; None where there is none."""
    return known.get(question.key, {}).get("better")


def spoken(
    bench: Bench,
    pairs: Mapping[str, Sequence[Pair]],
    rulings: Mapping[str, Sequence[Ruling]],
    verdicts: Mapping[str, Sequence[tuple[Side | None, Side | None]]],
) -> tuple[set[str], dict[str, Any]]:
    """(the answers, as shown, that turn the judge's control questions; what those cost and whether it passes them)."""
    lines: dict[str, dict[str, Any]] = {}

    def gather(questions: Sequence[Question]) -> Mapping[str, Mapping[str, Any]]:
        lines.update(gathered(bench, {q.key: (canary.NAME, q) for q in questions}))
        return lines

    ruled = [(pair, rulings[name][i]) for name, rows in pairs.items() for i, pair in enumerate(rows)]
    under: dict[str, canary.Suspect] = {}
    for name, rows in pairs.items():
        for pair, outcome, both in zip(rows, rulings[name], verdicts[name], strict=True):
            for suspect in canary.suspects(pair, outcome, *both).values():
                before = under.get(suspect.text)
                if before is None or len(before.orders) < len(suspect.orders):
                    under[suspect.text] = suspect
    if not under:
        return set(), {}
    controls = canary.controls_of(gather, ruled, bench.judge, bench.evaluate.judge.criteria, bench.seed)
    spoke = canary.speakers(gather, controls, under, bench.judge, bench.seed)
    write_lines(bench.folder / f"{canary.NAME}.jsonl", list(lines.values()))
    return spoke, {
        "usd": sum(line["usd"] for line in lines.values()),
        "controls": len(controls),
        "spoke": sorted(spoke),
    }


def gathered(bench: Bench, wanted: Mapping[str, tuple[str, Question]]) -> dict[str, dict[str, Any]]:
    """The verdicts on these questions, by key: those given before, and of the others what the judge says now.

    `wanted` names the file of each question's verdict, which is written as it comes.
    """
    known = kept(bench, wanted)
    missing = [q for key, (_, q) in wanted.items() if key not in known]
    bench.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        streams: dict[str, TextIO] = {}

        def hear(place: int, reply: str, usd: float) -> None:
            question = missing[place]
            name = wanted[question.key][0]
            if name not in streams:
                path = bench.folder / f"{name}.jsonl"
                drop_broken_end(path)
                streams[name] = stack.enter_context(path.open("a", encoding="utf-8"))
            known[question.key] = line = line_of(question, reply, usd)
            streams[name].write(canonical(line) + "\n")
            streams[name].flush()

        if missing:
            bench.ask(missing, hear)
    return known


def line_of(question: Question, reply: str, usd: float) -> dict[str, Any]:
    """A verdict as it is kept: who was shown first, who won, and the judge's own words."""
    first = next(iter(question.sides.values()))
    return {"key": question.key, "id": question.id, "first": first, "better": verdict_in(question, reply),
            "said": reply[:500], "usd": usd}  # fmt: skip


def kept(bench: Bench, wanted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The verdicts given before, by key: of this attempt, and of the finished evaluation before it."""
    lines: dict[str, dict[str, Any]] = {}
    for folder in (bench.earlier, bench.folder):
        for path in sorted(folder.glob("*.jsonl")) if folder and folder.is_dir() else []:
            for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                line = verdict_line(text)
                if line and line["key"] in wanted:
                    lines[line["key"]] = line
    return lines


def verdict_line(text: str) -> dict[str, Any] | None:
    """One line of a verdicts file, or None when it is not one: the pair is then asked again."""
    try:
        line = json.loads(text)
        line = {name: line[name] for name in ("key", "id", "first", "better", "said", "usd")}
    except (ValueError, KeyError, TypeError):
        return None
    return line if line["better"] in ("a", "b", TIE, None) else None


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file by these lines in one step."""
    write_whole(path, "".join(canonical(line) + "\n" for line in lines))


def human_pairs(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Human]:
    """Rows (where, row) with prompt, a, b and winner as pairs; RequestError naming the row that is none."""
    pairs = []
    for number, (where, row) in enumerate(rows, 1):
        prompt, a, b = (row.get(name) for name in ("prompt", "a", "b"))
        winner = str(row.get("winner", "")).strip().lower()
        texts = isinstance(prompt, str) and isinstance(a, str) and isinstance(b, str)
        if not texts or winner not in ("a", "b", TIE):
            raise RequestError(
                f"{where}: a pair needs prompt, a, b and winner (a, b or tie); this has {str(dict(row))[:120]}",
                where="evaluate.judge.human",
                remedy="mend the row",
            )
        pairs.append(Human(f"pair-{number}", prompt, a, b, winner))  # type: ignore[arg-type]
    if not pairs:
        raise RequestError("there are no pairs in it", where="evaluate.judge.human", remedy="null, or another file")
    return pairs


# How far a judge can be believed: whether it says the same in both orders, and what people say of the same pairs.

WORDS = ("a", "tie", "b")  # who wins a pair
RESAMPLES = 2_000


def consistency(alike: Sequence[bool], confidence: float) -> dict[str, Any]:
    """The share of pairs judged alike in both orders, with Wilson's interval; None where no pair was asked."""
    if not alike:
        return {"consistency": None, "consistency_low": None, "consistency_high": None, "consistency_n": 0}
    share = share_interval(np.array(alike, dtype=np.float64), np.arange(len(alike)), confidence)
    ends = {"consistency_low": share.low, "consistency_high": share.high, "consistency_n": len(alike)}
    return {"consistency": share.value, **ends}


def agreement(people: Sequence[str], judge: Sequence[str], confidence: float, seed: int) -> dict[str, Any]:
    """Cohen's kappa of two verdicts a pair (Cohen 1960), its bootstrap interval, and the plain share of equal ones.

    Kappa is None without pairs, and where everybody always says one and the same: chance explains that.
    """
    if not people:
        return {"kappa": None, "kappa_low": None, "kappa_high": None, "kappa_n": 0, "agreement": None}
    plain = {"kappa_n": len(people), "agreement": float(np.mean([p == j for p, j in zip(people, judge)]))}
    if len({*people, *judge}) == 1:
        return {"kappa": None, "kappa_low": None, "kappa_high": None, **plain}
    pairs_n = np.array([3 * WORDS.index(p) + WORDS.index(j) for p, j in zip(people, judge)], dtype=np.int64)
    value = float(kappa(np.bincount(pairs_n, minlength=9).reshape(1, 3, 3))[0])
    low, high = (float(end) for end in resampled(pairs_n, confidence, seed))
    return {"kappa": value, "kappa_low": low, "kappa_high": high, **plain}


def resampled(pairs_n: Ints, confidence: float, seed: int) -> Sequence[float]:
    """The ends of kappa's bootstrap interval; `pairs_n` numbers the cell of the 3 by 3 table that each pair is in."""
    rng, n = np.random.default_rng(seed), len(pairs_n)
    counts_b33 = np.array([np.bincount(rng.choice(pairs_n, n), minlength=9) for _ in range(RESAMPLES)]).reshape(
        -1, 3, 3
    )
    tail = (1 - confidence) / 2
    return np.quantile(kappa(counts_b33), [tail, 1 - tail]).tolist()


def kappa(counts_b33: Ints) -> Floats:
    """Kappa (B,) of tables of counts: how far the agreement seen goes beyond chance's, as a share of what it could."""
    shares_b33 = counts_b33 / counts_b33.sum(axis=(1, 2), keepdims=True)
    seen_b = np.trace(shares_b33, axis1=1, axis2=2)
    chance_b = (shares_b33.sum(2) * shares_b33.sum(1)).sum(1)
    # A resample of one single verdict agrees by chance alone.
    return np.where(chance_b < 1, (seen_b - chance_b) / np.maximum(1 - chance_b, math.ulp(1.0)), 0.0)
