"""Each distillation loss equals a float64 reference written here from its definition, in value and gradients."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workbench.training import distil, losses
from workbench.training.distil import chunk_loss, label_loss, summed, token_logprobs
from workbench.training.losses import (
    Divergence,
    Rows,
    cross_entropy,
    distil_loss,
    forward_kl,
    full,
    head_logits,
    jsd,
    mixed,
    named,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    through_softmax,
    top_k,
)

Reference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FLOOR = -1e4  # what a teacher's log 0 counts as


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σ a log(a/b) of probabilities, where 0 log 0 = 0 and log 0 of the second is the floor."""
    return (torch.xlogy(a, a) - a * torch.where(b > 0, b, 1.0).log().where(b > 0, FLOOR)).sum(-1)


def exact_jsd(beta: float) -> Reference:
    def value(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        m = beta * p + (1 - beta) * q
        return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta))

    return value


DIVERGENCES: dict[str, tuple[Divergence, Reference]] = {
    "forward": (forward_kl, kl),
    "reverse": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd 0.0001": (named("jsd", 1e-4), exact_jsd(1e-4)),
    "jsd 0.1": (named("jsd", 0.1), exact_jsd(0.1)),
    "jsd 0.5": (named("jsd", 0.5), exact_jsd(0.5)),
    "jsd 0.9": (named("jsd", 0.9), exact_jsd(0.9)),
    "jsd 0.9999": (named("jsd", 1 - 1e-4), exact_jsd(1 - 1e-4)),
    "skew 0.1": (named("skew_kl", 0.1), lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skew 0.9": (named("skew_kl", 0.9), lambda p, q: kl(p, 0.9 * p + 0.1 * q)),
    "skew reverse 0.1": (named("skew_reverse_kl", 0.1), lambda p, q: kl(q, 0.9 * p + 0.1 * q)),
}


def softmax(z: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """In float64, from its definition."""
    powers = ((z.double() - z.double().amax(-1, keepdim=True)) / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def case(name: str, rows: int = 6, words: int = 41) -> tuple[torch.Tensor, torch.Tensor]:
    """Student's and teacher's logits (rows, words)."""
    generator = torch.Generator().manual_seed(len(name))
    student, teacher = torch.randn(2, rows, words, generator=generator).unbind()
    picked = torch.randint(0, words, (rows,), generator=generator)
    certain = torch.full_like(teacher, -torch.inf).scatter(1, picked[:, None], 0.0)
    match name:
        case "random":
            return 2 * student, 2 * teacher
        case "equal":
            return student, student.clone()
        case "large":
            return 8 * student, 8 * teacher
        case "huge":
            return 40 * student, 40 * teacher
        case "one-hot teacher":
            return 3 * student, certain
        case "one-hot student":
            return student.scatter(1, picked[:, None], 60.0), 2 * teacher
        case "tails of nothing":
            return 3 * student, teacher.masked_fill(torch.rand(rows, words, generator=generator) < 0.5, -torch.inf)
    raise ValueError(name)


CASES = ["random", "equal", "large", "huge", "one-hot teacher", "one-hot student", "tails of nothing"]
# Errors are relative to the wanted norm. Two cases have gradients too small for float32's log-probabilities, whose own
# rounding is 1e-5 at −100: there an error counts relative to this at least.
TINY = 1e-30
LEAST = {"equal": 0.1, "huge": 0.1}


def off(found: torch.Tensor | None, wanted: torch.Tensor | None, least: float = TINY) -> float:
    """Relative error by norm; of a norm below `least`, relative to that."""
    assert found is not None
    assert wanted is not None
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=least))


def check(
    student: torch.Tensor, rows: Rows, reference: Callable[[torch.Tensor], torch.Tensor], least: float = TINY
) -> None:
    """Values and gradients by logits of `rows` against the reference: at most 1e-5 off."""
    exact = student.double().requires_grad_()
    wanted = reference(exact)
    wanted.sum().backward()
    value, gradient = rows(student.clone(), slice(0, len(student)))
    assert off(value, wanted.detach(), least) <= 1e-5
    assert off(gradient(), exact.grad, least) <= 1e-5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_over_the_vocabulary_is_exact(kind: str, name: str) -> None:
    divergence, definition = DIVERGENCES[kind]
    student, teacher = case(name)
    for temperature in (1.0, 2.5):
        p = softmax(teacher, temperature)
        check(
            student,
            full(lambda part: teacher[part], divergence, temperature),
            lambda z, p=p, t=temperature: definition(p, softmax(z, t)) * t**2,
            LEAST.get(name, TINY),
        )


def buckets(probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The named words' probabilities, then that of all others."""
    named_too = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, ids, True)
    rest = torch.where(named_too, 0.0, probabilities).sum(-1, keepdim=True)
    return torch.cat([probabilities.gather(1, ids), rest], 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd 0.1", "skew 0.1"])
def test_the_top_k_with_a_bucket_for_the_rest_are_exact_for_every_k(kind: str, name: str) -> None:
    divergence, definition = DIVERGENCES[kind]
    student, teacher = case(name)
    for k in (1, 2, 5, 40, 41):
        likely, ids = teacher.log_softmax(-1).topk(k)
        p = likely.double().exp()
        left = (1 - p.sum(-1, keepdim=True)).clamp(min=0) if k < 41 else torch.zeros(len(p), 1)
        p = torch.cat([p, left], 1) / torch.cat([p, left], 1).sum(-1, keepdim=True)
        rows = top_k(ids, likely, divergence)
        check(student, rows, lambda z, p=p, ids=ids: definition(p, buckets(softmax(z), ids)), LEAST.get(name, TINY))


def test_a_temperature_tempers_the_buckets_of_both_sides() -> None:
    student, teacher = case("random")
    likely, ids = teacher.log_softmax(-1).topk(4)
    p = buckets(softmax(teacher), ids).log() / 3
    check(
        student,
        top_k(ids, likely, forward_kl, temperature=3.0),
        lambda z: 9 * kl(softmax(p), softmax(buckets(softmax(z), ids).log(), 3.0)),
    )


def test_rows_with_fewer_alternatives_and_words_beyond_the_vocabulary_are_left_out() -> None:
    student, teacher = case("random")
    likely, ids = teacher.log_softmax(-1).topk(5)
    rows = top_k(ids, likely, forward_kl)
    padded = top_k(
        torch.cat([ids, torch.tensor([[-1, 99]]).repeat(6, 1)], 1),
        torch.cat([likely, torch.zeros(6, 2)], 1),
        forward_kl,
    )
    (value, gradient), (same, slope) = rows(student, slice(0, 6)), padded(student, slice(0, 6))
    torch.testing.assert_close(value, same)
    torch.testing.assert_close(gradient(), slope())


def test_the_sum_of_a_teachers_rounded_alternatives_may_pass_one() -> None:
    student, _ = case("random")
    rows = top_k(torch.tensor([[3, 7]] * 6), torch.tensor([[0.75, 0.2503]] * 6).log(), forward_kl)
    p = torch.tensor([0.75, 0.2503, 0.0], dtype=torch.float64) / 1.0003
    check(student, rows, lambda z: kl(p.expand(6, 3), buckets(softmax(z), torch.tensor([[3, 7]] * 6))))


def heads(
    dtype: torch.dtype, rows: int = 70, width: int = 24, words: int = 300, padding: int = 20
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head and bias of a student, hidden states and head of its teacher."""
    torch.manual_seed(7)
    hidden, theirs = torch.randn(2, rows, width).to(dtype).unbind()
    weight, teacher = (torch.randn(2, words + padding, width) * 0.4).to(dtype).unbind()
    return hidden, weight, (torch.randn(words + padding) * 0.1).to(dtype), theirs, teacher


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", [*DIVERGENCES, "top-k", "mixed"])
def test_the_chunked_head_is_exact_in_every_gradient_and_blind_to_padding(
    kind: str, dtype: torch.dtype, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 16)
    ours = [tensor.clone().requires_grad_() for tensor in heads(dtype)[:3]]
    exact = [tensor.double().requires_grad_() for tensor in heads(dtype)[:3]]
    *_, theirs, teacher = heads(dtype)
    weights, target = torch.rand(70), torch.randint(0, 300, (70,), generator=torch.Generator().manual_seed(1))
    p = softmax(theirs.double() @ teacher.double().T[:, :300])
    likely, ids = p.log().float().topk(6)
    q = softmax(exact[0] @ exact[1].T[:, :300] + exact[2][:300])
    against = head_logits(theirs, teacher)
    if kind == "top-k":
        rows, wanted = top_k(ids, likely, forward_kl), kl(buckets(p, ids), buckets(q, ids))
    elif kind == "mixed":
        rows = mixed((0.3, cross_entropy(target)), (0.7, full(against, reverse_kl)))
        wanted = -0.3 * q.gather(1, target[:, None])[:, 0].log() + 0.7 * kl(q, p)
    else:
        divergence, definition = DIVERGENCES[kind]
        rows, wanted = full(against, divergence), definition(p, q)
    reference = (wanted * weights).sum() / 123
    reference.backward()
    found = distil_loss(*ours, rows, num_items=123, row_weight_N=weights, vocabulary=300)
    found.backward()
    assert off(found.detach(), reference.detach()) <= 1e-5
    for one, other in zip(ours, exact, strict=True):
        assert off(one.grad, other.grad) <= limit
    assert not ours[1].grad[300:].any()
    assert not ours[2].grad[300:].any()


def test_a_frozen_head_gets_no_gradient_and_the_student_the_same() -> None:
    hidden, weight, _, theirs, teacher = heads(torch.float32)
    rows = full(head_logits(theirs, teacher), forward_kl)
    alone, both = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    distil_loss(alone, weight, None, rows, num_items=1).backward()
    distil_loss(both, weight.requires_grad_(), None, rows, num_items=1).backward()
    assert torch.equal(alone.grad, both.grad)


@pytest.mark.parametrize("micro", [7, 10, 35])
def test_micro_batches_over_the_steps_count_add_up_to_the_whole(micro: int) -> None:
    hidden, weight, bias, theirs, teacher = heads(torch.float32)
    whole, parts = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = distil_loss(whole, weight, bias, full(head_logits(theirs, teacher), skew_kl_tenth), num_items=70)
    loss.backward()
    total = 0.0
    for start in range(0, 70, micro):
        cut = slice(start, start + micro)
        part = full(head_logits(theirs[cut], teacher), skew_kl_tenth)
        one = distil_loss(parts[cut], weight, bias, part, num_items=70)
        one.backward()
        total += float(one.detach())
    assert total == pytest.approx(float(loss.detach()), rel=1e-5)
    assert off(parts.grad, whole.grad) <= 1e-5


def skew_kl_tenth(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return skew_kl(student, teacher, 0.1)


@pytest.mark.parametrize("name", CASES)
def test_the_normalised_jsd_is_continuous_at_both_ends(name: str) -> None:
    student, teacher = case(name)
    # A teacher of nothing makes the reverse KL as large as its floor: its end is only reached with support.
    teacher = teacher.clamp(min=-12.0)
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    for end, near, pure in ((0.0, 1e-4, forward_kl), (1.0, 1 - 1e-4, reverse_kl)):
        (at_end, slope), (close, near_slope), (limit, pure_slope) = jsd(s, t, end), jsd(s, t, near), pure(s, t)
        assert torch.equal(at_end, limit)
        assert torch.equal(slope, pure_slope)
        torch.testing.assert_close(
            close.double(), exact_jsd(near)(softmax(teacher), softmax(student)), rtol=1e-5, atol=1e-6
        )
        if name == "random":  # elsewhere q/p is smaller than β, and the end truly farther
            torch.testing.assert_close(close, limit, rtol=2e-2, atol=0)
            nearer, _ = jsd(s, t, abs(end - 1e-7))
            torch.testing.assert_close(nearer, limit, rtol=1e-4, atol=0)
            assert off(through_softmax(s, near_slope), through_softmax(s, pure_slope)) < 5e-2


def test_golden_values_by_hand() -> None:
    s, t = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = {
        forward_kl: 0.5 * math.log(4 / 3),
        reverse_kl: 0.75 * math.log(3) - math.log(2),
        named("jsd", 0.5): math.log(0.8 * 4 / 3) + 1.5 * math.log(1.2) + 0.5 * math.log(2 / 3),
        named("skew_kl", 0.1): 0.5 * math.log(0.5 / 0.725) + 0.5 * math.log(0.5 / 0.275),
        named("skew_reverse_kl", 0.1): 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475),
    }  # fmt: skip
    for divergence, wanted in expected.items():
        assert float(divergence(s, t)[0]) == pytest.approx(wanted, rel=1e-6)
    four = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    value, gradient = top_k(torch.tensor([[1]]), torch.tensor([[0.5]]).log(), forward_kl)(four, slice(0, 1))
    assert float(value) == pytest.approx(0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7), rel=1e-6)
    # q − p of the named word; the others share what the bucket lacks as they share it now: q − 0.5 q / 0.7.
    torch.testing.assert_close(gradient(), torch.tensor([[0.4 * 2 / 7, -0.2, 0.2 * 2 / 7, 0.1 * 2 / 7]]))
    said, known = torch.tensor([0.75]).log(), torch.tensor([0.5]).log()
    assert float(chunk_loss(said, known, num_items=2)) == pytest.approx(0.25 * math.log(4 / 3), rel=1e-6)
    assert float(chunk_loss(torch.tensor([-2.0]), torch.tensor([-1.0]), num_items=1, temperature=math.inf)) == (
        pytest.approx(1 - math.log(2), rel=1e-6)
    )
    labels = torch.tensor([[3.0, 3.0]]), torch.tensor([[math.log(3), 0.0]])
    assert float(label_loss(*labels, num_items=1)) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6
    )


def test_a_mixture_outside_its_range_and_an_unknown_name_are_refused() -> None:
    some = torch.zeros(1, 2)
    for wrong in (-0.1, 1.1):
        for divergence in (jsd, skew_kl, skew_reverse_kl):
            with pytest.raises(ValueError, match="between 0 and 1"):
                divergence(some, some, wrong)
    with pytest.raises(ValueError, match="no divergence 'kl'"):
        named("kl", 0.5)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("frozen", [True, False])
def test_token_log_probabilities_carry_any_rows_gradient(
    dtype: torch.dtype, limit: float, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "ROWS_AT_ONCE", 16)
    ours = [tensor.clone() for tensor in heads(dtype)[:3]]
    exact = [tensor.double().requires_grad_() for tensor in heads(dtype)[:3]]
    for tensor in ours[: 1 if frozen else 3]:
        tensor.requires_grad_()
    target, upstream = torch.randint(0, 300, (70,)), torch.randn(70)
    found = token_logprobs(*ours, target, vocabulary=300)
    wanted = softmax(exact[0] @ exact[1].T[:, :300] + exact[2][:300]).gather(1, target[:, None])[:, 0].log()
    (found * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    assert off(found.detach(), wanted.detach()) <= 1e-5
    for one, other in zip(ours[: 1 if frozen else 3], exact, strict=False):
        assert off(one.grad, other.grad) <= limit


def test_a_strings_likelihood_is_the_sum_over_its_tokens() -> None:
    said = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    whole = summed(said, torch.tensor([1, -1, 0, 1]), 3)
    assert whole.tolist() == [-4.0, -9.0, 0.0]
    (whole * torch.tensor([1.0, 3.0, 9.0])).sum().backward()
    assert said.grad is not None
    assert said.grad.tolist() == [3.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0, math.inf])
def test_the_chunk_loss_is_the_binary_kl_of_its_definition(temperature: float) -> None:
    torch.manual_seed(3)
    s = -torch.cat([torch.rand(40) * 3, torch.rand(40) * 1e-4 + 1e-6, torch.rand(40) * 80])
    t = -torch.cat([torch.rand(40) * 3, torch.rand(40) * 3, torch.rand(40) * 80])
    t[5] = 0.0  # a teacher without doubt
    ours, exact = s.clone().requires_grad_(), s.double().requires_grad_()
    hot = min(temperature, 1e7)
    p = (t.double() / hot).exp()
    other, left = -torch.expm1(t.double() / hot), -torch.expm1(exact / hot)
    wanted = (
        hot
        * (p * (t.double() - exact) / hot + torch.where(other > 0, other * (other.clamp(min=1e-300) / left).log(), 0.0))
    ).sum() / 5
    wanted.backward()
    found = chunk_loss(ours, t, num_items=5, temperature=temperature)
    found.backward()
    limit = 1e-5 if temperature < 1e6 else 1e-4  # the limit, against a large temperature
    assert off(found.detach(), wanted.detach()) <= limit
    assert off(ours.grad, exact.grad) <= limit


def test_a_student_without_doubt_gets_a_finite_loss_and_gradient() -> None:
    for temperature in (1.0, 100.0, math.inf):
        student = torch.tensor([0.0, -0.0, -1e-9, -200.0], requires_grad=True)
        loss = chunk_loss(student, torch.tensor([-0.1, 0.0, -5000.0, -0.0]), num_items=1, temperature=temperature)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_labels_are_compared_over_the_set_alone(temperature: float) -> None:
    torch.manual_seed(5)
    student, teacher = -torch.rand(6, 4) * 20, -torch.rand(6, 4) * 20
    teacher[0, 1:], teacher[3, 2] = -torch.inf, -torch.inf
    ours, exact, weight = student.clone().requires_grad_(), student.double().requires_grad_(), torch.rand(6)
    p, q = softmax(teacher, temperature), softmax(exact, temperature)
    wanted = (kl(p, q) * weight).sum() * temperature**2 / 6
    wanted.backward()
    found = label_loss(ours, teacher, num_items=6, temperature=temperature, weight_N=weight)
    found.backward()
    assert off(found.detach(), wanted.detach()) <= 1e-5
    assert off(ours.grad, exact.grad) <= 1e-5
    shifted = label_loss(student - 7, teacher - 3, num_items=6, temperature=temperature, weight_N=weight)
    assert float(shifted) == pytest.approx(float(found.detach()), rel=1e-5)


@pytest.mark.slow
def test_the_heads_peak_memory_is_below_a_quarter_of_the_naive_one() -> None:
    measured = benchmark("--rows", "4096", "--words", "49152", "--width", "64")
    assert measured["ours"]["peak_bytes"] < measured["naive"]["peak_bytes"] / 4
    assert measured["ours"]["loss"] == pytest.approx(measured["naive"]["loss"], rel=1e-4)


def benchmark(*words: str) -> dict[str, dict[str, float]]:
    """What `tests/benchmarks/distil_head_memory.py` measured."""
    script = Path(__file__).parents[1] / "benchmarks" / "distil_head_memory.py"
    done = subprocess.run([sys.executable, str(script), *words, "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
