"""Rows packed into bins: each read as if it stood alone, bins of equal tokens, and what is done where memory ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from token_rows import method, rows
from workbench.errors import RequestError, WorkbenchError
from workbench.training import attention, fitting
from workbench.training.attention import by_groups, by_varlen, documents_of, read, unpackable
from workbench.training.batches import Cut, collate, rows_of_steps
from workbench.training.job import Job
from workbench.training.loop import train
from workbench.training.losses import answer_loss
from workbench.training.student import packed as whether_packed

LENGTHS = (31, 5, 64, 17, 40, 9, 33)
SMALL: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"head_dim": 8},
    # a window shorter than the documents, in every second layer, and a scale of its own
    "Gemma3Text": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
                   "query_pre_attn_scalar": 24},
    "Mistral": {"sliding_window": 12},
    "Phi3": {"sliding_window": 20, "pad_token_id": 2},
    "Olmo2": {},
    "Qwen3Moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def tiny(family: str, **more: Any) -> PreTrainedModel:
    """A random model of a family, in float32, as training loads it for short rows on the CPU."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | FAMILIES.get(family, {}) | more)
    names = (f"{family}ForCausalLM", f"{family.removesuffix('Text')}ForCausalLM")
    name = next(name for name in names if hasattr(transformers, name))
    config._attn_implementation = "eager"
    return getattr(transformers, name)(config).eval()


def texts(lengths: Sequence[int] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 200, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_has_the_hidden_states_and_gradients_that_it_has_alone(family: str) -> None:
    model, made = tiny(family), texts()
    alone = []
    for ids in made:
        model.zero_grad()
        states = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        states.pow(2).mean().backward()
        alone.append((states.detach(), {name: p.grad.clone() for name, p in model.base_model.named_parameters()}))
    assert unpackable(model, 200, 64) == ""
    together = documents_of(LENGTHS)
    for number, (states, gradients) in enumerate(alone):
        model.zero_grad()
        out = read(model.base_model, torch.cat(made)[None], together).last_hidden_state[0].split(LENGTHS)[number]
        out.pow(2).mean().backward()
        torch.testing.assert_close(out, states, rtol=1e-5, atol=1e-5)
        for name, parameter in model.base_model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def reference(query: Any, key: Any, value: Any, lengths: Sequence[int], scale: float, window: int | None) -> Any:
    """Each document's attention by itself, (T, heads, D)."""
    out = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        seen = torch.ones(len(q), len(q), dtype=torch.bool).tril()
        seen = seen if window is None else seen.triu(1 - window)
        parts = (part.transpose(0, 1)[None] for part in (q, k, v))
        out.append(
            scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        )
    return torch.cat(out)


def varlen_of_2_10(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
                   is_causal: bool = False, return_aux: Any = None) -> Any:  # fmt: skip
    assert is_causal
    assert key.shape == query.shape, "heads are not shared here"
    return reference(query, key, value, cu_seq_q.diff().tolist(), query.shape[-1] ** -0.5, None)


def varlen_of_2_11(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
                   return_aux: Any = None, scale: Any = None, window_size: Any = (-1, -1)) -> Any:  # fmt: skip
    assert key.shape == query.shape, "heads are not shared here"
    window = None if window_size[0] == -1 else window_size[0] + 1
    assert window_size[1] == 0, "nothing behind a token is seen"
    return reference(query, key, value, cu_seq_q.diff().tolist(), scale, window)


def varlen_of_2_13(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
                   return_aux: Any = None, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
                   seqused_k: Any = None, block_table: Any = None, num_splits: Any = None) -> Any:  # fmt: skip
    assert enable_gqa
    assert cu_seq_q.dtype == torch.int32
    assert (max_q, max_k) == (max(LENGTHS), max(LENGTHS))
    window = None if window_size[0] == -1 else window_size[0] + 1
    assert window_size[1] == 0
    return reference(query, key, value, cu_seq_q.diff().tolist(), scale, window)


@pytest.mark.parametrize("takes", [varlen_of_2_10, varlen_of_2_11, varlen_of_2_13])
def test_torch_s_kernel_is_asked_in_each_release_s_own_words_for_what_is_computed_without_it(
    takes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a card; its signatures are those of torch's documents, and these compute what they say."""
    generator, documents = torch.Generator().manual_seed(2), documents_of(LENGTHS)
    query, key, value = (torch.randn(sum(LENGTHS), heads, 8, generator=generator) for heads in (4, 2, 2))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", takes)
    windows = [None] if takes is varlen_of_2_10 else [None, 8]
    for window in windows:
        for scale in (8**-0.5, 0.2):
            by_kernel = by_varlen(query, key, value, documents, scale, window)
            plain = reference(query, key, value, LENGTHS, scale, window)
            torch.testing.assert_close(by_kernel, plain, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                by_groups(query, key, value, documents, scale, window), plain, rtol=1e-5, atol=1e-6
            )
    monkeypatch.setattr(attention, "SHORT", 8)  # longer documents go to SDPA
    torch.testing.assert_close(by_groups(query, key, value, documents, 0.2, 8), reference(
        query, key, value, LENGTHS, 0.2, 8), rtol=1e-5, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("Mamba", {"state_size": 4}, "layers of the kind linear_attention look past"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of the kind conv"),
        ("Gemma2", {"head_dim": 8}, "caps its scores"),
        ("Bloom", {}, "what stands before a document"),
    ],
)
def test_a_model_that_does_not_keep_documents_apart_is_not_packed_and_says_why(
    family: str, more: dict[str, Any], why: str
) -> None:
    model = tiny(family, **more)
    before = model.config._attn_implementation
    reason = unpackable(model, 200, 64)
    assert reason
    assert why in reason
    assert model.config._attn_implementation == before


# Bins, and the rows of a step.


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=24), st.integers(1, 24), st.integers(1, 200), st.booleans())
def test_every_row_of_a_step_is_in_one_micro_batch_within_its_bounds_and_the_fullest_comes_first(
    lengths: list[int], most: int, tokens: int, packed: bool
) -> None:
    parts = Cut(most, tokens, packed).of(range(len(lengths)), lengths)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    held = [
        sum(lengths[row] for row in part) if packed else len(part) * max(lengths[row] for row in part) for part in parts
    ]
    assert all(len(part) <= most for part in parts)
    assert all(n <= tokens or len(part) == 1 for n, part in zip(held, parts, strict=True))
    assert held == sorted(held, reverse=True)


def test_bins_hold_about_equal_tokens() -> None:
    lengths = [20 + (i * 37) % 400 for i in range(64)]
    parts = Cut(64, 2048, packed=True).of(range(64), lengths)
    held = [sum(lengths[row] for row in part) for part in parts]
    assert len(held) == -(-sum(lengths) // 2048)
    assert max(held) - min(held) <= 30


def test_a_step_s_rows_are_a_sample_of_all_where_length_tells_the_label() -> None:
    short = [n % 2 == 0 for n in range(512)]  # every second row is short, and its label hangs on that
    shares = [sum(short[row] for row in step) / 16 for step in rows_of_steps(512, 16, 32, 7)]
    assert sum(shares) / len(shares) == 0.5, "each pass shows each row once"
    assert 0 < min(shares) < max(shares) < 1, "no step holds one length alone"
    spread = sum((share - 0.5) ** 2 for share in shares) / len(shares)
    assert spread < 2 * 0.25 / 16, "no wider than drawing rows at random spreads"


def test_packed_rows_have_the_loss_and_the_weights_that_padded_ones_have(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    numbered = list(enumerate(rows(7)))
    padded = collate(numbered, 2)
    plain = answer_loss(model, padded["input_ids"], padded["labels"])
    packed = collate(numbered, 2, packed=True)
    assert packed["input_ids"].shape == (1, int(padded["attention_mask"].sum()))
    assert packed["trained"].tolist() == padded["trained"].tolist()
    assert unpackable(model, 200, 64) == ""
    together = answer_loss(model, packed["input_ids"], packed["labels"], packed["documents"])
    torch.testing.assert_close(together, plain, rtol=1e-5, atol=1e-5)
    again = answer_loss(model, padded["input_ids"], padded["labels"])
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-5, msg="padded rows are still read as they were")


def go(base: Path, out: Path, events: list[dict[str, Any]] | None = None, stop_at: int = 99, **changes: Any) -> Any:
    def event(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append({"kind": kind, **fields})
        if fields.get("name") == "train/loss" and fields["step"] > stop_at:
            raise EOFError("killed")

    usual = {"packing": "on", "max_steps": 4, "evaluations": 1, "sample_answers": 0, "learning_rate": 2e-3}
    how = method(**{**usual, **changes})
    job = Job(base, how, rows(40), out, validation=rows(8, start=100), seed=3, dtype="float32", device="cpu",
              threads=1, event=event)  # fmt: skip
    return train(job)


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [e["value"] for e in events if e.get("name") in ("train/loss", "validation/loss")]


def test_packed_or_not_and_however_it_is_cut_a_run_learns_the_same(tiny_model: Path, tmp_path: Path) -> None:
    curves, summaries = [], []
    for number, changes in enumerate(
        ({"packing": "off", "neftune": 5.0}, {"packing": "on", "neftune": 5.0, "micro_batch_tokens": 40})
    ):
        events: list[dict[str, Any]] = []
        summaries.append(go(tiny_model, tmp_path / str(number), events, **changes))
        curves.append(losses(events))
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)
    assert [summary["packed"] for summary in summaries] == [False, True]
    assert summaries[1]["total_tokens"] == summaries[0]["total_tokens"], "padding was never counted"


def test_packing_is_refused_by_name_where_it_is_asked_for_and_left_aloud_where_it_is_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.training.student.unpackable", lambda *_: "it has a running state")
    with pytest.raises(RequestError, match="rows cannot be packed: it has a running state"):
        go(tiny_model, tmp_path)
    lines: list[str] = []
    job = Job(tiny_model, method(), rows(8), tmp_path, event=lambda kind, text: lines.append(text))
    assert not whether_packed(job, tiny("Llama"), "cuda", 200, 64)
    assert lines == ["rows are not packed: it has a running state. Each is read as a row of its own"]


def test_on_a_cpu_auto_packs_the_documents_of_a_row_and_no_whole_rows(tmp_path: Path) -> None:
    job = Job(tmp_path, method(), rows(8), tmp_path)
    assert not whether_packed(job, tiny("Llama"), "cpu", 200, 64)
    assert whether_packed(replace(job, reads_packed=True), tiny("Llama"), "cpu", 200, 64)
    assert whether_packed(job, tiny("Llama"), "cuda", 200, 64)


# Where memory ends.


class Small:
    """A device that holds so many tokens at once: the layers of a model refuse more, as torch does."""

    def __init__(self, tokens: int):
        self.tokens, self.most = tokens, 0

    def __call__(self, model: Any, ids: torch.Tensor, documents: Any, **more: Any) -> Any:
        if ids.numel() > self.tokens and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried …")
        self.most = max(self.most, ids.numel() if torch.is_grad_enabled() else 0)
        return read(model, ids, documents, **more)


@pytest.mark.slow
def test_out_of_memory_halves_the_bins_aloud_and_the_run_learns_the_same_also_when_it_is_killed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "whole", whole)
    small = Small(90)
    monkeypatch.setattr("workbench.training.losses.read", small)
    events: list[dict[str, Any]] = []
    summary = go(tiny_model, tmp_path / "small", events, save_minutes=1e-9)
    lines = [e["text"] for e in events if "out of memory" in e.get("text", "")]
    assert lines
    assert lines[0].startswith("out of memory at step 1 with ")
    assert 45 <= summary["micro_batch_tokens"] <= 90
    assert small.most <= 90
    assert losses(events) == pytest.approx(losses(whole), abs=1e-4), "no row is lost and none is read twice"
    with pytest.raises(EOFError):
        go(tiny_model, tmp_path / "cut", stop_at=2, save_minutes=1e-9)
    again: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "cut", again, save_minutes=1e-9)
    assert not any("out of memory" in e.get("text", "") for e in again), "it goes on with the bins it had"
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "small"))
    assert one.read_bytes() == other.read_bytes()


def test_what_the_cpu_says_when_it_has_no_memory_is_taken_for_that_and_no_other_error() -> None:
    words = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"
    assert fitting.out_of_memory(RuntimeError(words))
    assert not fitting.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_device_that_does_not_hold_one_row_ends_the_run_with_the_way_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.training.losses.read", Small(8))
    with pytest.raises(WorkbenchError, match=r"memory does not hold one row.*\n.*method.checkpointing=on"):
        go(tiny_model, tmp_path, micro_batch_tokens=16)


def test_a_resumed_run_is_cut_as_it_began_whatever_memory_is_free_now(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EOFError):
        go(tiny_model, tmp_path / "cut", stop_at=2, save_minutes=1e-9, dropout=0.1)
    with monkeypatch.context() as patch:
        patch.setattr("workbench.training.student.available_memory", lambda device: 1)
        go(tiny_model, tmp_path / "cut", save_minutes=1e-9, dropout=0.1)
    go(tiny_model, tmp_path / "whole", save_minutes=1e-9, dropout=0.1)
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()
    (tmp_path / "cut" / "cut.json").write_text("{}")
    events: list[dict[str, Any]] = []
    go(tiny_model, tmp_path / "cut", events, save_minutes=1e-9, dropout=0.1)
    assert any("cut.json is not as it was written" in e.get("text", "") for e in events)


def test_the_tokens_that_fit_lie_on_the_line_through_two_measurements() -> None:
    assert fitting.tokens_that_fit([(1000, 300), (2000, 500)], 10_000) == 49_500
    assert fitting.tokens_that_fit([(1000, 300), (2000, 500)], 50) == 0
    assert fitting.tokens_that_fit([(10, 500), (20, 500)], 5_000) == 200, "too small to tell: as if all were a token's"


def test_on_a_card_the_bins_are_those_that_two_probes_say_fit_and_nothing_else_changes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a card's counters, by which each token read takes 1,000 bytes and each reading 5,000."""
    counted = {"peak": 0}

    def counting(model: Any, ids: torch.Tensor, documents: Any, **more: Any) -> Any:
        counted["peak"] = 5_000 + 1_000 * ids.numel()
        return read(model, ids, documents, **more)

    monkeypatch.setattr("workbench.training.losses.read", counting)
    for name, value in (("reset_peak_memory_stats", None), ("synchronize", None), ("memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: counted["peak"])
    monkeypatch.setattr("workbench.training.loop.probes", lambda *_: True)
    monkeypatch.setattr("workbench.training.loop.free_on_card", lambda: 76_000)
    monkeypatch.setitem(fitting.TO_COME, "adamw", 0)
    events: list[dict[str, Any]] = []
    summary = go(tiny_model, tmp_path / "card", events, dropout=0.1)
    assert summary["micro_batch_tokens"] == int(76_000 * fitting.SHARE_OF_CARD - 5_000) // 1_000
    (line,) = [e["text"] for e in events if e.get("text", "").startswith("measured")]
    assert "0.00 MB a token" in line
    plain: list[dict[str, Any]] = []
    monkeypatch.setattr("workbench.training.loop.probes", lambda *_: False)
    go(tiny_model, tmp_path / "plain", plain, dropout=0.1, micro_batch_tokens=summary["micro_batch_tokens"])
    assert losses(events) == losses(plain), "what was read to measure has moved nothing and drawn nothing"
