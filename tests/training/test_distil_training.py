"""The distillation losses inside the trainer: how a step is cut, what weights do, and when a student is stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from token_rows import method, rows
from workbench.errors import GateError
from workbench.recipe import Shrink, Teach
from workbench.records import TokenRow
from workbench.training.batches import collate
from workbench.training.development import Development, Point, answers, refuse_hacking
from workbench.training.distil import distillation_loss
from workbench.training.job import Job
from workbench.training.loop import train
from workbench.training.losses import answer_loss, divergence_of
from workbench.training.shrink import kept_layers, shrunk
from workbench.training.targets import ChunkTargets, LabelTargets, Target, TokenTargets

LABELS = ((10, 11, 12, 2), (20, 21, 2), (30, 2))


def weighted(count: int, start: int = 0) -> list[TokenRow]:
    """The rows of the plain tests, with the weights of votes."""
    return [replace(row, weight=(1.0, 0.75, 0.4)[n % 3]) for n, row in enumerate(rows(count, start))]


def targets(kind: str, made: list[TokenRow]) -> dict[str, Target]:
    """A teacher's word on all rows but every fifth, which has none."""
    found: dict[str, Target] = {}
    for n, row in enumerate(made):
        sure = math.log(0.6 + 0.03 * (n % 10))
        if kind == "tokens":
            ids = ((10, 40 + n % 7), (11, 50, 51), (), (2,))
            found[row.id] = TokenTargets(ids, tuple(tuple([sure, -2.0, -3.0][: len(i)]) for i in ids))
        elif kind == "bytes":
            found[row.id] = ChunkTargets((0, 0, 1, -1), (sure, -1.0 - n % 3))
        elif kind == "labels":
            found[row.id] = LabelTargets(LABELS, (sure, -1.5, -2.0), 0)
    return {row.id: found[row.id] for n, row in enumerate(made) if n % 5 and row.id in found}


def curve_of(base: Path, out: Path, kind: str, micro: int, **teach: Any) -> list[float]:
    """Training and validation losses of a short run in float32, by how its steps are cut."""
    made, events = weighted(40), []
    how = method(micro_batch_size=micro, learning_rate=2e-3, max_steps=6, sample_answers=0)
    how = replace(how, teach=Teach(**{"weight": 0.6, **teach}))
    job = Job(base, how, made, out, validation=rows(8, start=100), targets=targets(kind, made), seed=3, dtype="float32",
              device="cpu", threads=1, event=lambda event, **fields: events.append(fields))  # fmt: skip
    train(job)
    return [e["value"] for e in events if e.get("name") in ("train/loss", "validation/loss")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "teach"),
    [
        ("text", {}),
        ("tokens", {}),
        ("tokens", {"divergence": "jsd", "temperature": 2.0}),
        ("bytes", {"temperature": 100.0}),
        ("labels", {"divergence": "reverse_kl"}),
    ],
)
def test_one_by_eight_two_by_four_and_eight_by_one_give_the_same_loss_curve(
    tiny_model: Path, tmp_path: Path, kind: str, teach: dict[str, Any]
) -> None:
    whole = curve_of(tiny_model, tmp_path / "8", kind, 8, **teach)
    assert len(whole) == 6 + 3
    for micro in (4, 1):
        assert curve_of(tiny_model, tmp_path / str(micro), kind, micro, **teach) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_second_kind_goes_on_from_the_first_ones_weights(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    def go(base: Path, out: Path, rate: float, start: Path | None = None) -> dict[str, Any]:
        how = method(kind=kind, learning_rate=rate, max_steps=20, evaluations=1, sample_answers=0, warmup_share=0.0)
        return train(Job(base, how, rows(40), out, validation=rows(8, start=100), seed=3, dtype="float32", device="cpu",
                         threads=1, start=start))  # fmt: skip

    first = go(tiny_model, tmp_path / "a", 3e-3)
    fresh = go(tiny_model, tmp_path / "b", 1e-6)
    if kind == "full":
        second = go(tmp_path / "a" / "model", tmp_path / "c", 1e-6)
    else:
        second = go(tiny_model, tmp_path / "c", 1e-6, start=tmp_path / "a" / "adapter")
    assert first["last_validation_loss"] < fresh["last_validation_loss"] - 0.05
    assert second["last_validation_loss"] == pytest.approx(first["last_validation_loss"], abs=5e-3)


def loss_and_gradient(model: Any, made: list[TokenRow], found: dict[str, Target], **teach: Any) -> tuple[float, Any]:
    batch, how = collate(list(enumerate(made)), 2, found), Teach(**teach)
    model.zero_grad()
    loss = distillation_loss(model, batch, how, divergence_of(how), plain=True, vocabulary=None)
    own = distillation_loss(model, batch, how, divergence_of(how), plain=False, vocabulary=None)
    assert own.item() == pytest.approx(loss.item(), rel=1e-4), "both heads agree"
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    own.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, ours[name], rtol=2e-3, atol=2e-4, msg=name)
    return loss.item(), ours


def reference(model: Any, made: list[TokenRow], found: dict[str, Target], w: float) -> float:
    """The same sum written out plainly, row by row, for forward KL at temperature 1."""
    total = 0.0
    for row in made:
        logprobs = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        at = [i for i, t in enumerate(row.trained) if t]
        ce = [-logprobs[i - 1, row.input_ids[i]].item() for i in at]
        match found.get(row.id):
            case None:
                loss = sum(ce)
            case TokenTargets(ids, told):
                loss = 0.0
                for i, cost, known, likely in zip(at, ce, ids, told, strict=True):
                    kl = sum(math.exp(p) * (p - float(logprobs[i - 1, t])) for t, p in zip(known, likely, strict=True))
                    rest = 1 - sum(map(math.exp, likely))
                    left = 1 - sum(math.exp(float(logprobs[i - 1, t])) for t in known)
                    kl += rest * math.log(rest / left) if known else 0.0
                    loss += (1 - w) * cost + w * kl if known else cost
            case ChunkTargets(chunk_of, told):
                loss = sum(cost * (1 - w if c >= 0 else 1) for cost, c in zip(ce, chunk_of, strict=True))
                for number, t in enumerate(told):
                    s = -sum(cost for cost, c in zip(ce, chunk_of, strict=True) if c == number)
                    p, q = math.exp(t), math.exp(s)
                    loss += w * (p * (t - s) + (1 - p) * (math.log1p(-p) - math.log1p(-q)))
            case LabelTargets(labels, told, own):
                prompt, likely = row.input_ids[: at[0]], []
                for label in labels:
                    out = model(torch.tensor([[*prompt, *label]])).logits[0].double().log_softmax(-1)
                    likely.append(sum(float(out[len(prompt) - 1 + i, t]) for i, t in enumerate(label)))
                s, t = (torch.tensor(x, dtype=torch.double).log_softmax(0) for x in (likely, told))
                loss = -(1 - w) * likely[own] + w * float((t.exp() * (t - s)).sum())
        total += row.weight * loss
    return total


@pytest.mark.parametrize("kind", ["text", "tokens", "bytes", "labels"])
def test_a_batch_s_loss_is_the_plain_sum_row_by_row_and_mixed_batches_are_the_sum_of_their_rows(
    tiny_model: Path, kind: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    made = weighted(7)
    found = targets(kind, made)
    loss, _ = loss_and_gradient(model, made, found, weight=0.6)
    assert loss == pytest.approx(reference(model, made, found, 0.6), rel=1e-5)
    apart = sum(
        loss_and_gradient(model, [row], found, weight=0.6)[0] for row in made if row.weight < 1 or row.id in found
    )
    plain = [row for row in made if row.weight == 1 and row.id not in found]
    batch = collate(list(enumerate(plain)), 2)
    apart += float(answer_loss(model, batch["input_ids"], batch["labels"]))
    assert loss == pytest.approx(apart, rel=1e-5)


def test_rows_of_weight_one_take_the_plain_path_and_a_weight_scales_a_row(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert "targets" not in collate(list(enumerate(rows(4))), 2)
    whole = [replace(row, weight=0.5) for row in rows(4)]
    loss, _ = loss_and_gradient(model, whole, {})
    batch = collate(list(enumerate(rows(4))), 2)
    assert loss == pytest.approx(0.5 * float(answer_loss(model, batch["input_ids"], batch["labels"])), rel=1e-5)


def looks(*pairs: tuple[float, float], rows: int = 40) -> list[Point]:
    """Looks with these (score, loss), the score spread over zeros and ones."""
    return [
        Point(10 * (n + 1), score, [float(i < round(score * rows)) for i in range(rows)], loss, "validation loss")
        for n, (score, loss) in enumerate(pairs)
    ]


def test_a_score_that_falls_while_the_loss_falls_stops_with_both_curves_and_the_best_step() -> None:
    with pytest.raises(GateError) as stopped:
        refuse_hacking(looks((0.6, 1.0), (0.7, 0.8), (0.4, 0.6)), 0.1)
    said = str(stopped.value)
    for words in ("0.600, 0.700, 0.400", "1.0000, 0.8000, 0.6000", "step-00000020", "method.teach.hacking_drop"):
        assert words in said
    assert stopped.value.exit_code == 3


@pytest.mark.parametrize(
    ("pairs", "drop"),
    [
        (((0.7, 1.0), (0.4, 1.1)), 0.1),  # the loss rose as well: that is no hacking, and the best step stays
        (((0.7, 1.0), (0.65, 0.8)), 0.1),  # little
        (((0.7, 1.0), (0.4, 0.8)), None),  # only told
        (((0.4, 1.0), (0.7, 0.8)), 0.1),
    ],
)
def test_a_healthy_curve_goes_on(pairs: tuple[tuple[float, float], ...], drop: float | None) -> None:
    refuse_hacking(looks(*pairs), drop)


def test_a_fall_within_chance_goes_on() -> None:
    first, second = looks((0.5, 1.0), (0.3, 0.8), rows=10)
    mixed = replace(second, scores=[1.0 - s for s in first.scores[:6]] + [0.0] * 4, score=0.1)
    refuse_hacking([first, replace(mixed, score=sum(mixed.scores) / 10)], 0.1)


def test_answers_of_a_batch_are_those_of_each_row_alone(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = rows(9)
    alone = [answers(model, tokenizer, [row], 6, "cpu")[0] for row in made]
    assert answers(model, tokenizer, made, 6, "cpu") == alone


def test_development_scores_are_told_at_every_evaluation_and_written(tiny_model: Path, tmp_path: Path) -> None:
    import json

    events: list[dict[str, Any]] = []
    asked: list[int] = []

    def score(number: int, answer: str) -> float:
        asked.append(number)
        return float(number == 0)

    development = Development(rows(5, start=200), score, 4, None)
    job = Job(tiny_model, method(), rows(40), tmp_path, validation=rows(8, start=100), development=development, seed=3,
              dtype="float32", device="cpu", threads=1, event=lambda kind, **fields: events.append(fields))  # fmt: skip
    train(job)
    told = [(e["step"], e["value"]) for e in events if e.get("name") == "development/score"]
    assert told == [(4, 0.2), (8, 0.2), (12, 0.2)]
    kept = json.loads((tmp_path / "development.json").read_text())
    assert kept["scores"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [point["step"] for point in kept["curve"]] == [4, 8, 12]
    assert asked == [0, 1, 2, 3, 4] * 3, "the step that stays was asked once"


def test_a_damaged_headroom_is_taken_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.recipe import Recipe
    from workbench.records import Example, Message
    from workbench.runs import Run
    from workbench.stages.train import guards

    asked: list[int] = []
    monkeypatch.setattr(guards, "base_answers", lambda recipe, base, items: [asked.append(1) or "no" for _ in items])
    rows = [Example(f"e{n}", (Message("user", "?"), Message("assistant", "yes")), group=str(n)) for n in range(20)]
    development = [(row, "yes") for row in rows]

    def facts() -> dict[str, Any]:
        return guards.headroom(Recipe(), Run(tmp_path, "mine", "x"), tmp_path, development, tmp_path)

    first = facts()
    assert first["lead"] == 1.0
    assert facts() == first
    assert len(asked) == 20, "the base is asked once"
    whole = (tmp_path / guards.FILE).read_text()
    for damaged in ("", "{", "[]", whole[:-5], whole.replace('"base_score": 0.0', '"base_score": 0.9')):
        (tmp_path / guards.FILE).write_text(damaged)
        assert facts() == first
    assert len(asked) == 20 * 6


def test_spread_layers_hold_the_first_and_the_last() -> None:
    assert kept_layers(30, 15, "spread") == [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29]
    assert kept_layers(4, 2, "spread") == [0, 3]
    assert kept_layers(4, 2, "first") == [0, 1]
    assert kept_layers(4, 1, "spread") == [0]


def test_a_cut_model_has_its_layers_in_order_and_answers_as_those_layers_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert shrunk(tiny_model, Shrink()) == tiny_model
    assert shrunk(tiny_model, Shrink(layers=2)) == tiny_model
    folder = shrunk(tiny_model, Shrink(layers=1))
    assert shrunk(tiny_model, Shrink(layers=1)) == folder, "made once"
    small = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert small.config.num_hidden_layers == len(small.model.layers) == 1
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight, "tied as before"
    whole.model.layers = whole.model.layers[:1]
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(small(ids).logits, whole(ids, use_cache=False).logits)
