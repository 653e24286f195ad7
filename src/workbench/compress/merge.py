"""The adapter goes into the 16-bit base weights, and the result is held against the unmerged model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from workbench.errors import WorkbenchError
from workbench.records import TokenRow
from workbench.sources import refuse_code

# Rounding merged weights to bfloat16 costs some 1e-4 nats on a tuned SmolLM2; a merge that went wrong (twice,
# another base, a wrong scale) costs far over 1e-1.
MOST_KL = 0.02


def merge(
    base_dir: Path, adapter_dir: Path, out_dir: Path, *, tokenizer: Any, probe: Sequence[TokenRow], dtype: str
) -> dict[str, Any]:
    """Write the merged model with tokenizer, template and stop tokens to `out_dir`; return how well it agrees.

    `tokenizer` is the one, with its chat template, that the rows were rendered with.

    `kl` is the mean KL(adapter ‖ merged) in nats over the probe rows' trained positions, and
    `top_token_agreement` the share of them with the same most likely token. Raises WorkbenchError above MOST_KL.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    refuse_code(base_dir)
    base = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
    )
    model = PeftModel.from_pretrained(base, str(adapter_dir), local_files_only=True).eval()
    unmerged = [answer_logprobs(model, row) for row in probe]
    merged = merged_in_fp32(model, getattr(torch, dtype))
    facts = agreement(unmerged, [answer_logprobs(merged, row) for row in probe])
    if facts["kl"] > MOST_KL:
        raise WorkbenchError(
            f"the merged model differs from its adapter: KL {facts['kl']:.3g} nats, at most {MOST_KL} is allowed",
            where="merge",
            remedy="check that the adapter belongs to this base model",
        )
    merged.config.use_cache = True
    merged.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    pin_stop_tokens(out_dir, {row.input_ids[-1] for row in probe}, tokenizer)
    return facts


def merged_in_fp32(model: Any, dtype: torch.dtype) -> Any:
    """Merge with fp32 arithmetic, so that each weight is rounded once."""
    return model.float().merge_and_unload().to(dtype)


def answer_logprobs(model: Any, row: TokenRow) -> torch.Tensor:
    """Log-probabilities [N, V] in fp32 at the positions that predict the row's N trained tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
    wanted = torch.tensor(row.trained[1:])
    return functional.log_softmax(logits[wanted].float(), dim=-1)


def agreement(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Mean KL(first ‖ second) and the share of positions with the same most likely token."""
    a, b = torch.cat(list(first)), torch.cat(list(second))
    kl = (a.exp() * (a - b)).sum(dim=-1).mean()
    same = (a.argmax(dim=-1) == b.argmax(dim=-1)).float().mean()
    return {"kl": float(kl), "top_token_agreement": float(same), "rows": len(first), "positions": len(a)}


def pin_stop_tokens(folder: Path, stops: set[int], tokenizer: Any) -> None:
    """Write into generation_config.json every token that ends an answer: an engine that knows fewer never stops.

    `stops` are those that were trained; some families' end-of-turn token is not the tokenizer's eos.
    """
    path = folder / "generation_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    named = config.get("eos_token_id")
    known = set(named if isinstance(named, list) else [named]) | stops | {tokenizer.eos_token_id}
    ids = sorted(i for i in known if i is not None)
    config |= {"eos_token_id": ids if len(ids) > 1 else ids[0], "do_sample": False}
    for key in ("temperature", "top_p", "top_k"):
        config.pop(key, None)  # a sampling default would contradict do_sample
    if tokenizer.pad_token_id is not None:
        config["pad_token_id"] = tokenizer.pad_token_id
    path.write_text(json.dumps(config, indent=2))
