"""What is trained, in one value: a job. What a kind of training adds to it: a loss, made once the student is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workbench.recipe import Method
from workbench.records import TokenRow, digest
from workbench.stored_tokens import StoredTokens
from workbench.training.targets import Target, targets_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workbench.training.batches import Batch
    from workbench.training.development import Development
    from workbench.training.world import World

ORDER = "a sample a step"  # how a seed becomes the rows of each step: a checkpoint of another order is not gone on from
Event = Callable[..., None]
Moment = tuple[str, int]  # ("step", steps that are done) or ("validation", the first row's number)


def silent(kind: str, **fields: Any) -> None:
    """Hear nothing of what training tells."""


class Shown(Protocol):
    """What shows how far training is."""

    loss: str

    def shown(self, done: int, steps: int) -> AbstractContextManager[None]:
        """While it is shown, with so many steps done."""

    def step(self, step: int, loss: float, speed: float) -> None:
        """A step is done."""

    def line(self, text: str) -> None:
        """Say a line."""


@dataclass(frozen=True)
class Student:
    """The model that is trained, as a loss meets it.

    `model` has the adapter around it, `decoder` is the causal model inside. `plain` says whether its logits are hidden
    states times the head's weight; `vocabulary` is the first row of its head that no token has, None where there is
    none. `batch_tokens` bounds the padded tokens read at once without gradients; `request` names all that the weights
    will have been made from. `dtype` is what its weights are here, `job.dtype` what they are written in. `packs` says
    whether rows are packed: its attention keeps the documents of one sequence apart, see attention.py.
    """

    model: PreTrainedModel
    decoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    plain: bool
    vocabulary: int | None
    batch_tokens: int
    request: str
    dtype: str
    packs: bool = False

    @property
    def pad(self) -> int:
        """The token that fills a batch up."""
        return self.tokenizer.pad_token_id or 0


@dataclass(frozen=True)
class HeldOut:
    """What a kind's own measure makes of the rows that judge it: a value each, and how much each counts.

    `measure` says what is measured, `better` whether more of it ("up") or less ("down") is better.
    """

    measure: str
    better: str
    values: Sequence[float]
    weights: Sequence[float]


@dataclass(frozen=True)
class Loss:
    """One kind of training, as the loop meets it. Rows have numbers: the job's rows first, then its validation rows.

    `batches(cuts, moment)` makes a batch of each list of row numbers, with `batches.on_device`'s counts: the cuts of
    one call are one whole step, whose losses are divided by the sum of its `items`. `summed(batch)` is the batch's
    summed loss. `looks` are the cuts of the validation rows, and `metrics()` what else the step just taken told.
    `held_out()` measures the student as it is; it is asked before the first step and of the weights that stay.
    `name` is what the mean over the looks is called where it is said beside a development score.
    """

    batches: Callable[[Sequence[Sequence[int]], Moment], list[Batch]]
    summed: Callable[[Batch], torch.Tensor]
    looks: Sequence[Sequence[int]] = ()
    metrics: Callable[[], dict[str, float]] = dict
    held_out: Callable[[], HeldOut] | None = None
    name: str = "validation loss"


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where it is written.

    `targets` are a teacher's word on rows, by their ids. `development` are gold rows on which the student is scored at
    every evaluation. `start` is the adapter to go on from, in a chain of kinds. `loss` makes the kind's loss; None is
    that of answers, see distil.py, and another one says by `reads_packed` that it takes packed rows. `made_of` names
    what the weights depend on and no other field holds; `facts` go into the summary as they are, and so does what
    `compared` makes of the loss's held-out measure before and after. `world` is which of several processes this is,
    None where it trains alone, and `screen` what is shown as it goes.
    """

    base: Path
    method: Method
    rows: Sequence[TokenRow]
    out: Path
    validation: Sequence[TokenRow] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    development: Development | None = None
    start: Path | None = None
    seed: int = 0
    dtype: str = "bfloat16"
    device: str = "auto"
    threads: int | None = None
    event: Event = silent
    loss: Callable[[Job, Student], Loss] | None = None
    made_of: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    compared: Callable[[HeldOut, HeldOut], Mapping[str, Any]] | None = None
    world: World | None = None
    screen: Shown | None = None
    reads_packed: bool = False


def request_of(job: Job, dtype: str) -> str:
    """Digest of all that weights computed in `dtype` are made from: only by the same is a checkpoint gone on from."""
    method = job.method
    makes = {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("makes_weights", True)}
    for name in ("micro_batch_size", "micro_batch_tokens", "packing"):
        makes.pop(name, None)  # how a step is cut does not change it
    teach = {f.name: getattr(method.teach, f.name) for f in fields(method.teach) if f.metadata["makes_weights"]}
    beside = job.made_of + (targets_digest(job.targets) if job.targets else "") + (str(job.start) if job.start else "")
    values = {"method": makes | {"teach": teach}, "seed": job.seed, "dtype": dtype, "beside": beside, "order": ORDER}
    if isinstance(job.rows, StoredTokens):
        return digest(values | {"rows": job.rows.digest})
    return digest(values | {"rows": [asdict(row) | {"where": ""} for row in job.rows]})
