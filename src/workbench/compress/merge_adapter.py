"""The adapter goes into 16-bit base weights; and how far one model is from another on held-out rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from workbench.compress.format_check import really_quantized
from workbench.engines.ask import generation_config, stop_ids
from workbench.engines.device import computed_in, device_of, keep_unpacked, nf4_config, widen
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
) -> dict[str, Any]:
    """Write the merged model with tokenizer, template and stop tokens to `out_dir`; return how well it agrees.

    `tokenizer` is the one, with its chat template, that the rows were rendered with; `kind` is the method's: a lora
    was trained on the base's `dtype` weights, a qlora on their NF4 form. A qlora is merged into both, the original
    base and the dequantized one, and the one closer to the unmerged adapter is kept.

    `kl` is the mean KL(adapter ‖ merged) in nats over the probe rows' trained positions, and
    `top_token_agreement` the share of them with the same most likely token; for a qlora `merges` gives both KLs and
    `kept` the name of the one. Raises WorkbenchError above MOST_KL.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    refuse_code(base_dir)
    torch_dtype = getattr(torch, dtype)
    trained = adapted(
        nf4_base(base_dir, torch_dtype) if kind == "qlora" else plain_base(base_dir, torch_dtype), adapter_dir
    )
    unmerged = probed(trained, probe)
    if kind == "qlora":
        del trained
        merged, facts = closer(base_dir, adapter_dir, unmerged, probe, torch_dtype)
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


def closer(
    base_dir: Path, adapter_dir: Path, unmerged: Sequence[torch.Tensor], probe: Sequence[TokenRow], dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    """Of the two merges of a qlora, the one that agrees better with the adapter as it was trained, and both KLs."""
    merges: dict[str, float] = {}
    kept: tuple[Any, dict[str, Any]] | None = None
    for name, base in (("original_base", plain_base), ("dequantized_base", dequantized_base)):
        merged = merged_in_fp32(adapted(base(base_dir, dtype), adapter_dir), dtype)
        facts = agreement(unmerged, probed(merged, probe))
        merged.to(dtype)
        merges[name] = facts["kl"]
        if kept is None or facts["kl"] < kept[1]["kl"]:
            kept = merged, facts | {"kept": name}
    assert kept is not None
    return kept[0], kept[1] | {"merges": merges}


def plain_base(base_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base model in 16 bits."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype, local_files_only=True, use_safetensors=True)


def nf4_base(base_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base model as a qlora sees it in training."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=dtype, local_files_only=True, use_safetensors=True, device_map={"": "cpu"},
        quantization_config=nf4_config(dtype),
    )  # fmt: skip
    return keep_unpacked(model)


def dequantized_base(base_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base model in 16 bits, its linear layers with the values that NF4 left them."""
    return nf4_base(base_dir, dtype).dequantize(dtype)


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


def answer_logprobs(model: PreTrainedModel, row: TokenRow) -> torch.Tensor:
    """Log-probabilities [N, V] in fp32, on the CPU, at the positions that predict the row's N trained tokens."""
    ids = torch.tensor([row.input_ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    wanted = torch.tensor(row.trained[1:], device=logits.device)
    return functional.log_softmax(logits[wanted].float(), dim=-1).cpu()


def probed(model: PreTrainedModel, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
    """`answer_logprobs` of each row; the model is in float32 afterwards where the CPU computes nothing narrower."""
    if computed_in("bfloat16", model.device.type) == "float32":
        widen(model)
    return [answer_logprobs(model, row) for row in rows]


def agreement(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> dict[str, Any]:
    """What `second` changed: `kl`, the mean KL(first ‖ second) in nats over all positions; `top_token_agreement`,
    the share of them with the same most likely token; `flip_rate`, the share with another; `rows`; `positions`.
    """
    kl, same, positions = 0.0, 0, 0
    for a, b in zip(first, second, strict=True):
        kl += float((a.exp() * (a - b)).sum())
        same += int((a.argmax(dim=-1) == b.argmax(dim=-1)).sum())
        positions += len(a)
    share = same / positions
    return {
        "kl": kl / positions,
        "top_token_agreement": share,
        "flip_rate": 1 - share,
        "rows": len(first),
        "positions": positions,
    }


def folder_logprobs(model_dir: Path, rows: Sequence[TokenRow], *, device: str = "auto") -> list[torch.Tensor]:
    """`answer_logprobs` of each row in the model of a folder, 16-bit or quantized, run as transformers runs it.

    Takes 4 bytes × positions × vocabulary: 125 MB for 32 rows of 20 trained tokens with 49,000 in the vocabulary.
    """
    from workbench.engines.transformers import load

    place = torch.device(device_of(device))
    model, _ = load(model_dir, None, place)
    return [answer_logprobs(model, row) for row in rows]
