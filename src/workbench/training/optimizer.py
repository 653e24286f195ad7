"""How weights are moved: AdamW with float32 state, which tensors decay, and the learning rate of each step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from workbench.recipe import Method

# Biases and norms do not decay: pulling a scale towards 0 is no regularisation. The patterns are transformers' own.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
SCHEDULES = {
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}  # a recipe's word → transformers', where they differ


def optimizer_for(model: torch.nn.Module, method: Method, dtype: str) -> torch.optim.Optimizer:
    """AdamW on the tensors that train: with float32 masters where weights have 16 bits, or bitsandbytes' in 8 bits."""
    settings: dict[str, Any] = {"lr": method.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
    groups = groups_of(model, method.weight_decay)
    if method.optimizer == "adamw_8bit":
        import bitsandbytes

        # A rare word's embedding has few large gradients, which 8 bits for a block of 256 would round away.
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
        return bitsandbytes.optim.AdamW(groups, **settings, optim_bits=8)
    return torch.optim.AdamW(groups, **settings) if dtype == "float32" else MasterAdamW(groups, **settings)


def groups_of(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The tensors that train, those that decay and those that do not."""
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    still = {name for name, p in trained if id(p) in norms or UNDECAYED.search(name.lower())}
    return [
        {"params": [p for name, p in trained if name not in still], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name in still], "weight_decay": 0.0},
    ]


def schedule_for(optimizer: torch.optim.Optimizer, method: Method, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """transformers' schedule: the learning rate rises over the warm-up, then follows `method.schedule` to the end."""
    from transformers import get_scheduler

    name = SCHEDULES.get(method.schedule, method.schedule)
    warmup = round(method.warmup_share * steps)
    # MiniCPM's decay (arXiv 2404.06395) is steep; a straight line to nought is its simplest form.
    decay = {"num_decay_steps": round(method.decay_share * steps), "decay_type": "linear"}
    specific = decay if method.schedule == "wsd" else None
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=specific
    )


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
