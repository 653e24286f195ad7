"""What transformers, in this process, makes of a bundle's files: for where the engine that serves it is not here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.engines.device import device_of
from workbench.engines.memory import keep_freed_memory
from workbench.engines.transformers import answers_of, load
from workbench.records import message_dicts
from workbench.serving.parity import TOP, Reference, Said, top_of


def measure_here(
    folder: Path,
    references: Sequence[Reference],
    *,
    top: int = TOP,
    max_new_tokens: int,
    base: Path | None = None,
) -> list[Said]:
    """As `parity.measure`, in transformers; `base` is the folder of the model under an unmerged adapter."""
    import torch
    from torch.nn import functional

    keep_freed_memory()
    place = torch.device(device_of())
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8") if base else None
    adapter = folder if base else None
    model, tokenizer = load(base or folder, adapter, place, template)
    told = []
    for row in references:
        ids = tokenizer.apply_chat_template(message_dicts(row.messages), add_generation_prompt=True, return_dict=False)
        whole = torch.tensor([[*row.prompt_ids, *row.answer_ids]], device=place)
        with torch.no_grad():
            logits = model(input_ids=whole, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        told.append((tuple(ids), tuple(top_of(functional.log_softmax(logits.float(), dim=-1), top))))
    answers = dict(answers_of(model, tokenizer, [row.messages for row in references], max_new_tokens))
    return [Said(ids, likely, answers[index]) for index, (ids, likely) in enumerate(told)]
