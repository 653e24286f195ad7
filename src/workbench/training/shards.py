"""Full fine-tuning over several processes: weights, gradients, masters and moments in shards (FSDP2).

torch's `fully_shard` cuts every tensor along its first dimension, gathers a layer's before it computes, and leaves each
process with its part of the gradients' sum. What is written is whole, and what is read is cut anew, so a checkpoint
does not know how many processes made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.training.batches import Batch
from workbench.training.job import Loss, Student
from workbench.training.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_sharded(kind: str, world: World) -> bool:
    """Whether the weights of such a training lie in shards: an adapter's base is whole in every process."""
    return kind == "full" and world.size > 1


class Whole(torch.nn.Module):
    """The model inside a forward that gives the batch's summed loss: what the loss reads of it, the head too, is there.

    A loss reads hidden states and the head's weight by itself, without the model's own forward, before which FSDP2
    would have gathered them.
    """

    def __init__(self, student: Student, loss: Loss):
        super().__init__()
        self.model, self.loss = student.model, loss

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.loss.summed(batch)


def sharded(student: Student, loss: Loss, world: World) -> Loss:
    """Cut the student's weights into shards, a layer a group; gives the loss that gathers them for each batch.

    Gradients are summed in float32, not averaged: each process has divided its loss by the count of all.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    whole = Whole(student, loss)
    how: dict[str, Any] = {
        "mesh": init_device_mesh(student.device, (world.size,)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    }
    layers = list(student.decoder.base_model.layers)
    for layer in layers:
        fully_shard(layer, **how)
    fully_shard(whole, **how)
    # What is gathered ahead in a backward pass is named. Left to itself each process follows the passes it has seen,
    # and the one that writes sample answers has seen more: they would wait for each other for good.
    for module, ahead in zip([whole, *reversed(layers)], [*reversed(layers), whole], strict=True):
        module.set_modules_to_backward_prefetch([ahead])
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return replace(loss, summed=whole)


@contextmanager
def gathered(loss: Loss, wanted: bool) -> Iterator[None]:
    """The whole weights in every process, if `wanted`: one of them can write answers while the others wait.

    In any case they are in shards again after it.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [m for m in loss.summed.modules() if isinstance(m, FSDPModule)] if isinstance(loss.summed, Whole) else []
    for part in parts if wanted else ():
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(not isinstance(part, Whole), recurse=False)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may lie in shards, whole; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: PreTrainedModel, keep: bool, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of the model, whole and on the CPU, in `dtype` if that is given; {} for who does not `keep` them.

    One that stands under two names, as a tied head does, is one here too.
    """
    once: dict[int, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in once:
            whole = whole_tensor(tensor.detach())
            wanted = dtype if dtype and whole.is_floating_point() else whole.dtype
            once[id(tensor)] = whole.to("cpu", wanted) if keep else whole.new_empty(0)
        weights[name] = once[id(tensor)]
    return weights if keep else {}


def put_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Put whole tensors into a model in shards: each process takes its part."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in weights:  # a tied head is stored once
                tensor.copy_(cut_like(weights[name], tensor))


def cut_like(whole: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, cut as another one is; it is read here, and nothing is sent."""
    if not isinstance(tensor, DTensor):
        return whole
    device, mesh = tensor.to_local().device, tensor.device_mesh
    return distribute_tensor(whole.to(device, tensor.dtype), mesh, tensor.placements, src_data_rank=None)


def whole_state(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """The optimizer's state with whole tensors on the CPU; {} for who does not `keep` it."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: whole(part) for name, part in value.items()}
        if isinstance(value, list):
            return [whole(part) for part in value]
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if keep else None

    state = whole(optimizer.state_dict())
    return state if keep else {}


def put_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put a state that `whole_state` gave into an optimizer, each tensor cut as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: object, parameter: torch.Tensor) -> object:
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            return value
        return cut_like(value, parameter.detach())

    kept = {
        number: {name: cut(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    masters = {"masters": list(map(cut, state["masters"], parameters))} if "masters" in state else {}
    optimizer.load_state_dict({**state, "state": kept, **masters})
