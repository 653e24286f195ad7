"""The loss on the trained positions equals the plain path, whole and accumulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from workbench.records import TokenRow
from workbench.training.batches import collate
from workbench.training.losses import ROWS_A_CHUNK, HeadLoss, answer_loss, head_is_plain, plain_loss


def rows(count: int, seed: int = 0) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        length = 12 + 5 * (i % 6)
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        answer = 3 + i % 4
        made.append(TokenRow(f"r{i}", tuple(ids), tuple(j >= length - answer for j in range(length))))
    return made


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_equals_the_plain_path_in_value_and_in_every_gradient(model: Any) -> None:
    batch = collate(list(enumerate(rows(6))), pad=2)
    ours = answer_loss(model, batch["input_ids"], batch["labels"])
    plain = plain_loss(model, batch["input_ids"], batch["labels"], batch["attention_mask"])
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    left, right = gradients(model, ours), gradients(model, plain)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5, msg=name)


def test_it_equals_the_models_own_loss(model: Any) -> None:
    batch = collate(list(enumerate(rows(6))), pad=2)
    count = int((batch["labels"][:, 1:] != -100).sum())
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    ours = answer_loss(model, batch["input_ids"], batch["labels"]) / count
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulated_micro_batches_give_the_whole_batch_s_gradient(model: Any, micro: int) -> None:
    numbered = list(enumerate(rows(8)))
    whole = collate(numbered, pad=2)
    count = int((whole["labels"][:, 1:] != -100).sum())
    expected = gradients(model, answer_loss(model, whole["input_ids"], whole["labels"]) / count)
    model.zero_grad()
    for start in range(0, 8, micro):
        part = collate(numbered[start : start + micro], pad=2)
        (answer_loss(model, part["input_ids"], part["labels"]) / count).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_chunks_do_not_change_the_head_s_gradients() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS_A_CHUNK + 40, 16, requires_grad=True)
    weight, bias = torch.randn(50, 16, requires_grad=True), torch.randn(50, requires_grad=True)
    target = torch.randint(0, 50, (len(hidden),))
    ours = torch.autograd.grad(HeadLoss.apply(hidden, weight, bias, target) * 3, (hidden, weight, bias))
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, target, reduction="sum") * 3
    for left, right in zip(ours, torch.autograd.grad(plain, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_bf16_gradients_stay_within_one_per_cent_of_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 128) * 2, torch.randn(1000, 128)
    target = torch.randint(0, 1000, (64,))
    narrow = hidden.bfloat16().requires_grad_()
    HeadLoss.apply(narrow, weight.bfloat16(), None, target).backward()
    exact = hidden.bfloat16().float().requires_grad_()
    HeadLoss.apply(exact, weight.bfloat16().float(), None, target).backward()
    assert (narrow.grad.float() - exact.grad).norm() / exact.grad.norm() < 0.01  # type: ignore[union-attr]


def test_a_soft_capped_head_is_recognised_and_a_plain_one_too(model: Any) -> None:
    ids = torch.arange(3, 20)[None]
    assert head_is_plain(model, ids)
    config = Gemma2Config(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=1, head_dim=16)  # fmt: skip
    assert not head_is_plain(Gemma2ForCausalLM(config), ids)


def test_a_head_that_scales_without_saying_so_is_found_by_trying(model: Any) -> None:
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits / 8
        return out

    model.forward = scaled
    assert not head_is_plain(model, torch.arange(3, 20)[None])
