"""How a route is chosen: which rows may decide, which way is cheaper, what an error's price moves, and what is told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from workbench.deciding.before import LEAST_ROWS
from workbench.evaluation.answers import Prediction
from workbench.files import append
from workbench.recipe import Recipe
from workbench.recipe.schema import Route
from workbench.records import Example, Message
from workbench.runs import Run
from workbench.stages.route.choosing import Pairs, Prices, best, candidates, compared, more_rows, trade
from workbench.stages.route.fresh_rows import one_a_cluster
from workbench.stages.route.looks import level_of, look, looks_at
from workbench.stages.route.route import fingerprint_of
from workbench.stages.route.telling import refusals, tell


def prediction(number: int, logprob: float | None, finish: str = "stop") -> Prediction:
    return Prediction(
        f"r{number}", f"k{number}", "yes", "yes", finish, 9, 2, 0.1, logprob=logprob, mean_logprob=logprob,
        least_logprob=logprob, margin=logprob, latency=0.1,
    )  # fmt: skip


def pairs_of(n: int, *, easy: float = 0.5, seed: int = 1, wording: bool = True) -> Pairs:
    """Requests of which so many are easy: the student is right and sure there; of the rest half right, and unsure.

    With `wording` the prompt tells which is which; the teacher is right in nearly all.
    """
    draw = random.Random(seed)
    home, right, away, texts = [], [], [], []
    for number in range(n):
        is_easy = draw.random() < easy
        home.append(prediction(number, -0.01 - draw.random() / 50 if is_easy else -0.5 - draw.random()))
        right.append(1.0 if is_easy and draw.random() < 0.99 else float(draw.random() < 0.5 and not is_easy))
        away.append(float(draw.random() < 0.97))
        texts.append(("stock of " if is_easy and wording else "sale of ") + "".join(draw.choices("abcdefgh", k=9)))
    return Pairs(home, home, np.array(right), np.array(away), [True] * n, texts)


def cheaper(found: dict[str, Any]) -> dict[float, str]:
    return {row["ratio"]: row["cheaper"] for row in found["rows"]}


def test_a_router_before_the_student_is_cheaper_where_answers_thrown_away_are_dear_and_the_report_says_why() -> None:
    # The prompt tells an easy request from a hard one less well than the score does: every tenth wording misleads.
    pairs = pairs_of(1600, easy=0.6)
    texts = [("sale" + t[5:]) if i % 6 == 0 and t.startswith("stock") else t for i, t in enumerate(pairs.texts)]
    pairs = Pairs(pairs.home, pairs.away, pairs.home_right, pairs.away_right, pairs.valid, texts)
    made = candidates(Route(kind="both"), pairs, 17, notes := [])
    assert notes == []
    assert [(c.kind, c.choice.n) for c in made] == [("cascade", 1600), ("before", 800)]
    assert all(c.certainty == pytest.approx(0.975) for c in made), "both promises are to hold together"
    found = compared(made, Prices(0.001, 0.01, 0.0))
    assert found is not None
    assert 0 < found["cascade"] < found["before"] < 1
    assert found["even_ratio"] == pytest.approx((found["before"] - found["cascade"]) / found["before"])
    verdicts = cheaper(found)
    assert set(verdicts) == {0.01, 0.1, 0.5}
    assert verdicts[0.01] == "cascade"
    assert verdicts[0.5] == "before"
    assert all((verdict == "cascade") == (ratio <= found["even_ratio"]) for ratio, verdict in verdicts.items())
    assert "the answers saved do" in found["why"]
    assert best(made, Prices(0.0001, 0.01, 0.0)).kind == "cascade"  # type: ignore[union-attr]
    assert best(made, Prices(0.005, 0.01, 0.0)).kind == "before"  # type: ignore[union-attr]


def test_a_router_before_the_student_is_left_out_aloud_where_rows_are_few() -> None:
    notes: list[str] = []
    made = candidates(Route(kind="before"), pairs_of(LEAST_ROWS - 1), 17, notes)
    assert made == []
    assert f"takes {LEAST_ROWS} rows" in notes[0]


def test_each_further_score_divides_what_is_left_of_certainty() -> None:
    made = candidates(Route(kind="cascade", scores=["logprob", "mean", "least", "margin"]), pairs_of(300), 17, [])
    assert [c.score for c in made] == ["logprob", "mean", "least", "margin"]
    assert all(c.certainty == pytest.approx(1 - 0.05 / 4) for c in made)


def test_an_answer_without_a_score_that_was_cut_or_is_no_json_is_never_kept() -> None:
    home = [prediction(0, None), prediction(1, -0.1, "length"), prediction(2, -0.1), prediction(3, float("nan")),
            *(prediction(n, -0.2) for n in range(4, 100))]  # fmt: skip
    ones = np.ones(100)
    valid = [n != 2 for n in range(100)]
    (made,) = candidates(Route(kind="cascade"), Pairs(home, home, ones, ones, valid, [""] * 100), 17, [])
    assert (made.choice.kept, made.choice.n) == (96, 100)


def test_a_price_of_errors_moves_the_threshold_up_within_the_promise_and_never_beyond_it() -> None:
    pairs = pairs_of(600)
    (made,) = candidates(Route(kind="cascade", most_harm=0.2), pairs, 17, [])
    plain, dear = (best([made], Prices(0.0, 0.001, error)) for error in (0.0, 1.0))
    assert plain is not None
    assert dear is not None
    assert plain.choice.threshold == made.choice.threshold
    assert dear.choice.threshold is not None
    assert dear.choice.threshold > (made.choice.threshold or 0.0)
    assert dear.choice.harmful < plain.choice.harmful


def test_the_report_says_what_weaker_promises_and_more_rows_would_keep() -> None:
    route = Route(kind="cascade", most_harm=0.02)
    (made,) = candidates(route, pairs_of(300, easy=0.7), 17, [])
    allowed = {line["promise"]: line["allowed"] for line in trade(route, made)}
    assert allowed == {"sure": 1, "on average": 5, "none: it looks right here": 6}
    shares = [line["share"] for line in trade(route, made)]
    assert shares == sorted(shares)
    lines = more_rows(route, made)
    assert [line["share"] for line in lines] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    needed = [line["rows"] for line in lines if line["rows"]]
    assert needed == sorted(needed)
    assert needed[0] >= 149, "two points take 149 rows even without any harm"


def test_of_near_copies_one_decides_by_the_seed() -> None:
    def row(name: str, text: str) -> Example:
        return Example(name, (Message("user", text), Message("assistant", "yes")))

    copies = [row(f"c{n}", f"the quick brown fox jumps over the lazy dog by the river {n}") for n in range(4)]
    rows = [*copies, row("other", "something else altogether that nobody has written before")]
    kept = one_a_cluster(rows, 17)
    assert len(kept) == 2
    assert "other" in kept
    assert kept == one_a_cluster(rows, 17)


def test_every_other_route_on_the_same_test_is_a_further_look_and_the_same_one_is_none(tmp_path: Path) -> None:
    assert [look(tmp_path, "test-a", route, "r/1") for route in ("x", "y", "x", "z")] == [1, 2, 1, 3]
    assert look(tmp_path, "test-b", "x", "r/1") == 1
    assert len(looks_at(tmp_path / "looks.jsonl")) == 4
    assert level_of(0.95, 2) == pytest.approx(0.975)


def test_a_look_is_counted_beside_a_torn_one_and_beside_one_that_is_taken_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    look(tmp_path, "test-a", "x", "r/1")
    whole = path.read_text()
    path.write_text(whole + whole[:30])
    assert look(tmp_path, "test-a", "y", "r/1") == 2
    assert [line["route"] for line in looks_at(path)] == ["x", "y"], "the torn line takes none with it"
    numbers: list[int] = []
    other = Thread(target=lambda: numbers.append(look(tmp_path, "test-a", "other", "r/2")))
    with FileLock(tmp_path / ".looks.jsonl.lock"):
        other.start()
        other.join(0.3)
        assert numbers == [], "it waits until the look that is being taken is written"
        append(path, whole.replace('"x"', '"z"'))
    other.join()
    assert numbers == [4]


def test_rows_that_are_named_by_their_scheme_and_change_make_another_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text('{"stages": {"evaluate": {"artefacts": []}}}')
    recipe, run = Recipe(), Run(tmp_path, "mine", "x")
    marks = set()
    for source in ("more.jsonl", "file:more.jsonl"):
        recipe.route.rows = source
        for text in ("one", "two"):
            (tmp_path / "more.jsonl").write_text(text)
            marks.add((source, fingerprint_of(recipe, run, {})))
    assert len(marks) == 4


def kept_of(pairs: Pairs, threshold: float) -> Sequence[bool]:
    return [(p.logprob or 0.0) >= threshold for p in pairs.home]


def test_what_is_told_on_the_test_adds_up() -> None:
    pairs = pairs_of(500)
    kept = kept_of(pairs, -0.1)
    found = tell(pairs, kept, "cascade", 0.95, 1000, 1, usd=(0.001, 0.01), waits=[0.1])
    share = float(np.mean(kept))
    assert found["escalated"]["value"] == pytest.approx(1 - share, abs=1e-6)
    assert found["usd_per_1000"]["cascade"]["value"] == pytest.approx(1 + 10 * (1 - share), abs=1e-5)
    assert found["usd_per_1000"]["saved"]["value"] == pytest.approx(10 - 1 - 10 * (1 - share), abs=1e-5)
    low, high = (found["usd_per_1000"]["cascade"][end] for end in ("ci_low", "ci_high"))
    assert low < found["usd_per_1000"]["cascade"]["value"] < high
    mix = share * pairs.home_right.mean() + (1 - share) * pairs.away_right.mean()
    assert found["arms"]["random_mix"]["value"] == pytest.approx(mix, abs=1e-6)
    lead = found["differences"]["cascade_vs_random_mix"]
    assert lead["value"] == pytest.approx(found["arms"]["cascade"]["value"] - mix, abs=1e-6)
    assert lead["ci_low"] > 0
    assert refusals(found, 0.95) == []
    assert found["seconds"] == {"p50": pytest.approx(0.1), "p95": pytest.approx(0.2)}, "what leaves has waited twice"
    before = tell(pairs, kept, "before", 0.95, 1000, 1, usd=(0.001, 0.01))
    assert before["usd_per_1000"]["cascade"]["value"] == pytest.approx(share + 10 * (1 - share), abs=1e-5)
    assert before["seconds"] == {}, "answers made together are nobody's wait"


def test_a_random_mix_is_seldom_taken_for_a_route() -> None:
    taken = 0
    for seed in range(60):
        pairs, draw = pairs_of(200, seed=seed), random.Random(seed)
        kept = [draw.random() < 0.4 for _ in pairs.home]
        taken += not refusals(tell(pairs, kept, "cascade", 0.95, 1000, seed), 0.95)
    assert taken <= 5, "at most one of forty is, by chance"
