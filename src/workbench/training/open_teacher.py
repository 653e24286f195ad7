"""An open-weight teacher beside the student: loaded, frozen, and asked for its logits at the student's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workbench.errors import WorkbenchError
from workbench.sources import refuse_code
from workbench.training.losses import head_is_plain, head_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class OpenTeacher:
    """A loaded teacher; `plain` says whether its last hidden states times its head's weight are its logits."""

    model: PreTrainedModel
    plain: bool

    @property
    def words(self) -> int:
        """Rows of its head, those without a word of their own among them."""
        return self.model.get_output_embeddings().weight.shape[0]

    @torch.no_grad()
    def logits(self, input_ids_BT: torch.Tensor, mask: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """Its logits (n, words) float32 at the positions of `mask` (B, T−1), made a few rows at a time as asked.

        The rows are padded on the right, so causal attention alone keeps padding away from every real token.
        """
        if not self.plain:
            whole = self.model(input_ids=input_ids_BT, use_cache=False).logits[:, :-1][mask]
            return lambda part: whole[part].float()
        hidden = self.model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state[:, :-1][mask]
        head = self.model.get_output_embeddings()
        return head_logits(hidden, head.weight, getattr(head, "bias", None))


def load_teacher(folder: Path, *, dtype: str, device: str) -> OpenTeacher:
    """The model of a folder with every weight frozen. WorkbenchError when it cannot be loaded."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    refuse_code(folder)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"the teacher cannot be loaded: {error}", where=str(folder)) from error
    finally:
        logging.enable_progress_bar()
    model = model.to(device).eval().requires_grad_(False)
    probe = torch.arange(min(16, model.get_input_embeddings().weight.shape[0]), device=device)[None]
    return OpenTeacher(model, head_is_plain(model, probe))
