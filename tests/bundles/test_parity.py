"""Parity: the KL of two short lists never exceeds the true one, and every planted fault is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.bundles.parity import (
    Reference,
    ServedRow,
    compare,
    kl_on_shared,
    parity_checks,
    read_parity,
    top_of,
    write_parity,
)
from workbench.errors import RequestError
from workbench.records import Answer, Message

VOCABULARY = 12


def log_softmax(logits: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(v) for v in logits))
    return [v - total for v in logits]


def likeliest(logprobs: Sequence[float], top: int) -> dict[int, float]:
    order = sorted(range(len(logprobs)), key=lambda i: -logprobs[i])[:top]
    return {i: logprobs[i] for i in order}


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q))


LOGITS = st.lists(st.floats(-12, 12), min_size=VOCABULARY, max_size=VOCABULARY)


@given(LOGITS, LOGITS, st.integers(1, VOCABULARY), st.integers(1, VOCABULARY))
def test_the_kl_of_two_lists_is_never_more_than_that_of_the_vocabulary(
    first: list[float], second: list[float], mine: int, theirs: int
) -> None:
    p, q = log_softmax(first), log_softmax(second)
    assert -1e-9 <= kl_on_shared(likeliest(p, mine), likeliest(q, theirs)) <= kl(p, q) + 1e-4


@given(LOGITS, LOGITS)
def test_whole_lists_give_the_whole_kl(first: list[float], second: list[float]) -> None:
    p, q = log_softmax(first), log_softmax(second)
    assert kl_on_shared(dict(enumerate(p)), dict(enumerate(q))) == pytest.approx(kl(p, q), abs=1e-4)


@given(LOGITS, st.integers(1, VOCABULARY))
def test_equal_models_are_no_distance_apart(logits: list[float], top: int) -> None:
    p = likeliest(log_softmax(logits), top)
    assert kl_on_shared(p, p) == pytest.approx(0, abs=1e-5)


def test_models_that_share_no_likely_token_are_far_apart() -> None:
    p = log_softmax([10.0] * 2 + [0.0] * 10)
    q = log_softmax([0.0] * 10 + [10.0] * 2)
    assert kl_on_shared(likeliest(p, 2), likeliest(q, 2)) > 0.5
    assert kl_on_shared({0: 0.0}, {5: -1e-7}) > 5, "each is certain of another token"
    assert kl_on_shared({0: 1e-7}, {0: -2e-7}) < 1e-6, "a rest that rounds below nothing is no distance"


def test_the_top_of_a_tensor_is_its_largest_values_by_token() -> None:
    import torch

    assert top_of(torch.tensor([[-3.0, -0.5, -1.0], [-1.0, -2.0, -3.0]]), 2) == [{1: -0.5, 2: -1.0}, {0: -1.0, 1: -2.0}]


SURE, ELSE = {2: -0.01, 7: -5.0}, {7: -0.01, 2: -5.0}


def row(name: str, score: float | None = 1.0) -> Reference:
    asked = (Message("user", f"Which licence is {name}?"),)
    return Reference(name, asked, (1, 5, 6), (9, 2), ({9: -0.1, 4: -3.0}, SURE), "MIT", score)


def said(prompt: tuple[int, ...] = (1, 5, 6), text: str = "MIT", finish: str = "stop") -> ServedRow:
    return ServedRow(prompt, ({9: -0.1, 4: -3.0}, SURE), Answer(text, finish, len(prompt), 2, 0.1))  # type: ignore[arg-type]


def verdicts(rows: Sequence[Reference], told: Sequence[ServedRow], **limits: float) -> dict[str, tuple[bool, str]]:
    wanted = compare(rows, told, lambda r, text: float(text == "MIT"))
    made = parity_checks(wanted, **({"most_kl": 0.1, "score_margin": 0.1} | limits), token_text=lambda i: f"t{i}")
    return {check.name: (check.passed, check.why) for check in made}


ROWS = [row(name) for name in "abcd"]


def test_a_server_that_agrees_passes_every_check() -> None:
    checks = verdicts(ROWS, [said()] * 4)
    assert list(checks) == ["prompt_ids", "stops", "kl", "answers"]
    assert all(passed for passed, _ in checks.values())
    assert "4 of 4" in checks["prompt_ids"][1]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((1, 1, 5, 6), "BOS token twice (id 1 't1')"),
        ((0, 1, 5, 6), "puts a BOS token in front (id 0 't0')"),
        ((5, 6), "leaves out the BOS token (id 1 't1')"),
        ((1, 8, 6), "training saw id 5 't5', the engine id 8 't8'; row b, position 1"),
        ((1, 5), "training saw id 6 't6', the engine nothing more; row b, position 2"),
        ((1, 5, 6, 6), "training saw nothing more, the engine id 6 't6'; row b, position 3"),
    ],
)
def test_the_first_prompt_that_differs_is_named_and_a_bos_by_its_name(prompt: tuple[int, ...], words: str) -> None:
    passed, why = verdicts(ROWS, [said(), said(prompt), said(), said()])["prompt_ids"]
    assert not passed
    assert words in why
    assert "row b" in why
    assert "3 of 4 prompts are equal" in why


def test_a_chat_that_counts_other_tokens_than_its_tokenizer_does_is_told() -> None:
    doubled = replace(said(), answer=replace(said().answer, tokens_in=4))
    passed, why = verdicts(ROWS, [said(), said(), said(), doubled])["prompt_ids"]
    assert not passed
    assert "in 1 rows" in why


def test_answers_that_run_on_fail_and_a_stop_token_that_is_not_heard_is_named() -> None:
    passed, why = verdicts(ROWS, [said(finish="length")] * 4)["stops"]
    assert not passed
    assert "0 of 4" in why
    assert "in 4 the engine held the stop token likeliest and did not stop" in why
    drifted = replace(said(finish="length"), top=({9: -0.1}, ELSE))
    assert "likeliest" not in verdicts(ROWS, [drifted] * 4)["stops"][1]


def test_one_row_in_twenty_may_run_on_and_rows_that_were_cut_are_not_counted() -> None:
    many = [row(str(i)) for i in range(40)]
    assert verdicts(many, [said(finish="length")] * 2 + [said()] * 38)["stops"][0]
    assert not verdicts(many, [said(finish="length")] * 3 + [said()] * 37)["stops"][0]
    cut = [replace(r, finish="length") for r in ROWS]
    assert verdicts(cut, [said(finish="length")] * 4)["stops"] == (
        True, "0 of 0 answers that ended by a stop token end so when served",
    )  # fmt: skip


def test_probabilities_that_differ_fail_on_their_mean_and_name_the_worst_row() -> None:
    far = replace(said(), top=({4: -0.1, 9: -3.0}, ELSE))
    told = compare(ROWS, [said(), said(), far, said()])
    assert told.kl_max_id == "c"
    assert told.kl_mean == pytest.approx((told.kl_max_row or 0) / 4)
    assert told.top_token_agreement == 0.75
    passed, why = verdicts(ROWS, [said(), said(), far, said()])["kl"]
    assert not passed
    assert "75.0%" in why
    assert "farthest off is c" in why
    assert verdicts(ROWS, [said(), said(), far, said()], most_kl=10.0)["kl"][0]


def test_a_score_may_lose_the_margin_and_no_more() -> None:
    one_wrong = [said(), said(), said(), said(text="GPL")]
    assert not verdicts(ROWS, one_wrong)["answers"][0]
    passed, why = verdicts(ROWS, one_wrong, score_margin=0.25)["answers"]
    assert passed
    assert "they score 0.750, training's 1.000" in why
    assert "3 of 4 answers are the same text" in why


def test_an_engine_that_tells_only_answers_is_held_to_its_answers() -> None:
    silent = [ServedRow(None, None, said().answer)] * 4
    assert list(verdicts(ROWS, silent)) == ["stops", "answers"]
    unscored = compare([replace(r, score=None) for r in ROWS], silent)
    assert [c.passed for c in parity_checks(unscored, most_kl=0.1, score_margin=0.1)] == [True, True]


def test_references_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    assert read_parity(tmp_path) == []
    rows = [row("a"), replace(row("b", score=None), answer="naïve 🎉 \ud83d", finish="length")]
    write_parity(tmp_path, rows, made_by="transformers, bfloat16")
    back = read_parity(tmp_path)
    assert back[0] == rows[0]
    assert back[1] == replace(rows[1], answer=back[1].answer)
    (tmp_path / "parity.json").write_text('{"rows": [{"id": 1}]}')
    with pytest.raises(RequestError, match="not a parity file"):
        read_parity(tmp_path)
