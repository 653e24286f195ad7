"""AdamW whose state and master weights are float32 while the model's weights stay in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101) on float32 copies of the parameters, written back after each step.

    In bf16 an update below 0.4 % of a weight is lost, and the second moment stops growing after some 250 steps. The
    copies cost 4 bytes a trained parameter: nothing for an adapter, and what full fine-tuning needs to move at all.
    """

    def __init__(self, params: Iterable[Any], **settings: Any):
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        self.live: list[torch.nn.Parameter] = [p for group in groups for p in group["params"]]
        copies = {id(p): p.detach().float().clone().requires_grad_() for p in self.live}
        super().__init__([{**g, "params": [copies[id(p)] for p in g["params"]]} for g in groups], **settings)
        self.masters: list[torch.Tensor] = [copies[id(p)] for p in self.live]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of the masters from the live gradients, copied back to the live parameters."""
        for master, live in zip(self.masters, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.to(torch.float32)
        result = super().step(closure)
        for master, live in zip(self.masters, self.live, strict=True):
            master.grad = None
            live.copy_(master)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the live gradients."""
        for live in self.live:
            live.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the masters, without which a resumed run would round every weight to 16 bits once."""
        return {**super().state_dict(), "masters": [m.detach() for m in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        state = dict(state_dict)
        for master, saved in zip(self.masters, state.pop("masters"), strict=True):
            master.copy_(saved)
        super().load_state_dict(state)
