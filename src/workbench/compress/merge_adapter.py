"""The adapter goes into 16-bit base weights; and how far one model is from another on held-out rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

from workbench.compress.format_check import really_quantized
from workbench.engines.ask import generation_config, stop_ids
from workbench.engines.device import (
    computed_in,
    device_of,
    free_on_card,
    keep_unpacked,
    nf4_config,
    release_memory,
    widen,
)
from workbench.errors import WorkbenchError
from workbench.records import TokenRow
from workbench.sources import refuse_code

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rounding merged weights to bfloat16 costs some 4e-4 nats on a tuned SmolLM2; its adapter merged twice cost 5e-2, and
# another base or a wrong scale costs more.
MOST_KL = 0.01


def merge(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    probe: Sequence[TokenRow],
    dtype: str,
    kind: str = "lora",
    device: str = "auto",
) -> dict[str, Any]:
    """Write the merged model with tokenizer, template and stop tokens to `out_dir`; return how well it agrees.

    `tokenizer` is the one, with its chat template, that the rows were rendered with; `kind` is the method's: a lora
    was trained on the base's `dtype` weights, a qlora on their NF4 form. A qlora is merged into both, the original
    base and the dequantized one, and the one closer to the unmerged adapter is kept. All of it happens on `device`,
    where that is one with memory enough.

    `kl` is the mean KL(adapter ‖ merged) in nats over the probe rows' trained positions, and
    `top_token_agreement` the share of them with the same most likely token; for a qlora `merges` gives both KLs and
    `kept` the name of the one. Raises WorkbenchError above MOST_KL.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    refuse_code(base_dir)
    torch_dtype, place = getattr(torch, dtype), merged_on(base_dir, device)
    trained = adapted((nf4_base if kind == "qlora" else plain_base)(base_dir, torch_dtype, place), adapter_dir)
    unmerged = probed(trained, probe)
    if kind == "qlora":
        del trained
        merged, facts = closer(base_dir, adapter_dir, unmerged, probe, torch_dtype, place)
    else:
        merged = merged_in_fp32(trained, torch_dtype)
        facts = agreement(unmerged, probed(merged, probe))
        merged.to(torch_dtype)
    if facts["kl"] > MOST_KL:
        raise WorkbenchError(
            f"the merged model differs from its adapter: KL {facts['kl']:.3g} nats, at most {MOST_KL} is allowed",
            where="merge",
            remedy="check that the adapter belongs to this base model, and that it has not been merged into it before",
        )
    merged.config.use_cache = True
    merged.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    pin_stop_tokens(out_dir, {row.input_ids[-1] for row in probe}, tokenizer)
    really_quantized(out_dir, dtype)
    return facts


# Bytes a 16-bit byte on disk that merging takes: the weights in float32, the merge that is kept beside, the head.
BYTES_TO_MERGE = 3.5


def merged_on(base_dir: Path, device: str) -> str:
    """The device to merge on: the wanted one, but the CPU where its memory would not hold what merging takes."""
    place = device_of(device)
    size = sum(path.stat().st_size for path in base_dir.glob("*.safetensors"))
    return "cpu" if place == "cuda" and free_on_card() < BYTES_TO_MERGE * size else place


def closer(
    base_dir: Path, adapter_dir: Path, unmerged: Seen, probe: Sequence[TokenRow], dtype: torch.dtype, place: str
) -> tuple[Any, dict[str, Any]]:
    """Of the two merges of a qlora, the one that agrees better with the adapter as it was trained, and both KLs."""
    merges: dict[str, float] = {}
    kept: tuple[Any, dict[str, Any]] | None = None
    for name, base in (("original_base", plain_base), ("dequantized_base", dequantized_base)):
        merged = merged_in_fp32(adapted(base(base_dir, dtype, place), adapter_dir), dtype)
        facts = agreement(unmerged, probed(merged, probe))
        merged.to(dtype)
        merges[name] = facts["kl"]
        if kept is None or facts["kl"] < kept[1]["kl"]:
            kept = merged, facts | {"kept": name}
    assert kept is not None
    return kept[0], kept[1] | {"merges": merges}


def plain_base(base_dir: Path, dtype: torch.dtype, place: str = "cpu") -> PreTrainedModel:
    """The base model in 16 bits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype, local_files_only=True, use_safetensors=True)
    return model.to(place)


def nf4_base(base_dir: Path, dtype: torch.dtype, place: str = "cpu") -> PreTrainedModel:
    """The base model as a qlora sees it in training."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=dtype, local_files_only=True, use_safetensors=True, device_map={"": place},
        quantization_config=nf4_config(dtype),
    )  # fmt: skip
    return keep_unpacked(model)


def dequantized_base(base_dir: Path, dtype: torch.dtype, place: str = "cpu") -> PreTrainedModel:
    """The base model in 16 bits, its linear layers with the values that NF4 left them."""
    return nf4_base(base_dir, dtype, place).dequantize(dtype)


def adapted(base: PreTrainedModel, adapter_dir: Path) -> PeftModel:
    """The base with the unmerged adapter on it, in evaluation mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter_dir), local_files_only=True).eval()


def merged_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merge with fp32 arithmetic, so that each weight is rounded once."""
    return model.float().merge_and_unload().to(dtype)


def pin_stop_tokens(folder: Path, stops: set[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into generation_config.json every token that ends an answer: an engine that knows fewer never stops.

    `stops` are those that were trained; some families' end-of-turn token is not the tokenizer's eos.
    """
    config = generation_config(folder)
    ids = sorted(stop_ids(folder, tokenizer) | stops)
    config |= {"eos_token_id": ids if len(ids) > 1 else ids[0], "do_sample": False}
    for key in ("temperature", "top_p", "top_k"):
        config.pop(key, None)  # a sampling default would contradict do_sample
    if tokenizer.pad_token_id is not None:
        config["pad_token_id"] = tokenizer.pad_token_id
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2))


# How far one model is from another on held-out rows: KL, agreement of the first choice, flips.


ROWS_AT_ONCE = 256  # positions whose float32 log-probabilities exist at once: 160 MB of a vocabulary of 152,000


@dataclass(frozen=True)
class Seen:
    """A model on probe rows: the hidden states (N, H) before its head at each row's N trained positions, and the head.

    Log-probabilities are made of them as they are asked for: kept whole, [N, V] in float32, those of 32 rows of a
    thousand trained tokens would take 19 GB with a vocabulary of 152,000, for each of the two models that are compared.
    """

    hidden: Sequence[torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor]

    def __len__(self) -> int:
        return len(self.hidden)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> torch.Tensor:
        """Log-probabilities [N, V] in fp32, on the CPU, at the positions that predict a row's N trained tokens."""
        return torch.cat([part.cpu() for part in self.parts(row)])

    def parts(self, row: int) -> Iterator[torch.Tensor]:
        """The same, ROWS_AT_ONCE positions at a time, where the model's head is."""
        for hidden in self.hidden[row].split(ROWS_AT_ONCE):
            with torch.no_grad():  # and not around the yield: whoever takes the part would lose its gradients
                part = functional.log_softmax(self.logits(hidden).float(), dim=-1)
            yield part


class StandIn(torch.nn.Module):
    """Stands in a model where its layers were, and gives the hidden states that it was handed."""

    def forward(self, inputs_embeds: torch.Tensor, **_: object) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def head_of(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model's way from hidden states (n, H) to logits (n, V), which outlives the model: it has a head of its own.

    It is the model's own forward without the layers, so that a head that scales or caps its logits does so here too.
    """
    name = next(name for name, module in model._modules.items() if module is model.get_output_embeddings())
    head, shell = copy.deepcopy(model.get_output_embeddings()), copy.copy(model)
    shell._modules = {**model._modules, model.base_model_prefix: StandIn(), name: head}

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return shell(inputs_embeds=hidden[None].to(head.weight.device), use_cache=False).logits[0]

    return logits


def probed(model: PreTrainedModel, rows: Sequence[TokenRow]) -> Seen:
    """What the model sees on the rows; it is in float32 afterwards where the CPU computes nothing narrower."""
    if computed_in("bfloat16", model.device.type) == "float32":
        widen(model)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen = []
    for row in rows:
        wanted = torch.tensor(row.trained[1:])
        with torch.no_grad():
            ids = torch.tensor([row.input_ids], device=model.device)
            hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1].cpu()
        seen.append(hidden[wanted])
    return Seen(seen, head_of(causal))


def agreement(first: Seen, second: Seen) -> dict[str, Any]:
    """What `second` changed: `kl`, the mean KL(first ‖ second) in nats over all positions; `top_token_agreement`,
    the share of them with the same most likely token; `flip_rate`, the share with another; `rows`; `positions`.
    """
    kl, same, positions = 0.0, 0, 0
    for row in range(len(first)):
        for a, theirs in zip(first.parts(row), second.parts(row), strict=True):
            b = theirs.to(a.device)
            same += int((a.argmax(dim=-1) == b.argmax(dim=-1)).sum())
            kl += float((a.exp() * (a - b)).sum())
            positions += len(a)
    share = same / positions
    return {
        "kl": kl / positions,
        "top_token_agreement": share,
        "flip_rate": 1 - share,
        "rows": len(first),
        "positions": positions,
    }


def folder_logprobs(model_dir: Path, rows: Sequence[TokenRow], *, device: str = "auto") -> Seen:
    """What the model of a folder sees on the rows, 16-bit or quantized, run as transformers runs it.

    Its log-probabilities come row by row; the layers are let go of before it returns.
    """
    from workbench.engines.transformers import load

    place = torch.device(device_of(device))
    model, _ = load(model_dir, None, place)
    seen = probed(model, rows)
    del model
    release_memory()
    return seen
