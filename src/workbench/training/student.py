"""What a training needs of the machine: a plan that fits its memory, the student on its device, threads, and an end."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from workbench.engines.device import computed_in, keep_freed_memory, threads_of
from workbench.errors import RequestError, WorkbenchError
from workbench.stored_tokens import lengths_of
from workbench.training.attention import unpackable
from workbench.training.batches import Plan
from workbench.training.fitting import plan_that_fits
from workbench.training.job import Job, Student, request_of
from workbench.training.losses import head_is_plain
from workbench.training.model import available_memory, load_model
from workbench.training.shards import is_sharded, put_weights, whole_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

START = "pissa_start"  # PEFT takes the part of the name before the first sign that is no letter for how it began


def load_student(job: Job, device: str) -> tuple[Student, Plan]:
    """The base model with its adapter, where the weights of the kind before are in it already, on the device.

    And the plan that fits there: whether rows are packed hangs on the model.
    """
    longest, free = max(lengths_of(job.rows)), available_memory(device)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = computed_in(job.dtype, device)
    model = load_model(job.base, job.method, dtype=dtype, device=device, longest=longest, seed=job.seed)
    if job.method.adapter_init != "zero" and (job.world is None or job.world.first):
        write_start(model, job.out / START)
    if job.start is not None:
        load_weights(model, job.start.glob("*.safetensors"))
    # Four-bit weights are where they were loaded to; what will lie in shards goes to its device layer by layer.
    in_shards = job.world is not None and is_sharded(job.method.kind, job.world)
    if job.method.kind != "qlora" and not in_shards:
        model.to(device)
    decoder = model if job.method.kind == "full" else model.get_base_model()
    decoder.eval()
    packs = packed(job, decoder, device, len(tokenizer), longest)
    plan = plan_that_fits(job, device, packs, free)
    if plan.recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if job.method.kind != "full":
            model.enable_input_require_grads()
    plain = head_is_plain(decoder, torch.tensor([job.rows[0].input_ids[:256]], device=model.device))
    words = len(tokenizer)
    student = Student(
        model, decoder, tokenizer, device, plain,
        vocabulary=words if words < decoder.get_output_embeddings().weight.shape[0] else None,
        batch_tokens=max(2 * min(plan.cut.tokens, plan.cut.rows * longest), 2048), request=request_of(job, dtype),
        dtype=dtype, packs=packs,
    )  # fmt: skip
    return student, plan


def packed(job: Job, decoder: PreTrainedModel, device: str, words: int, longest: int) -> bool:
    """Whether rows are packed, as `method.packing` says; why a model's are not is said, or with `on` an error.

    With `auto` on a CPU only the documents of a row are: there no gain was measured for whole rows.
    """
    wanted = job.method.packing
    if wanted == "off" or (wanted == "auto" and device == "cpu" and not job.reads_packed):
        return False
    why = "this kind of training reads its rows beside each other"
    if job.loss is None or job.reads_packed:
        why = unpackable(decoder, words, longest)
        if why and wanted == "auto":
            job.event("said", text=f"rows are not packed: {why}. Each is read as a row of its own")
    if why and wanted == "on":
        raise RequestError(f"rows cannot be packed: {why}", where="method.packing", remedy="method.packing=auto")
    return not why


@contextmanager
def computing(device: str, threads: int | None) -> Iterator[None]:
    """With so many threads, freed memory kept for the next step, and Hugging Face quiet."""
    torch.set_num_threads(threads_of(threads))
    if device == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.reset_peak_memory_stats()  # of this training alone, whatever the process has held before
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()


def peak_memory(device: str) -> int:
    """Most bytes held at once: on the GPU, or by the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# A trained model's weights: read, written, and proven to have moved while no tensor of the base did.


def load_weights(model: PreTrainedModel, files: Iterable[Path]) -> None:
    """Put the tensors of safetensors files into the model, in the dtype the model has: an adapter's, or all of them."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = {name: tensor for path in files for name, tensor in load_file(path).items()}
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, state)  # PEFT's load_adapter would bring the adapter back in float32
    else:
        put_weights(model, state)


def narrow(model: PreTrainedModel, dtype: str) -> None:
    """Round what was trained to the dtype it is written in, where it was computed in a wider one."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:  # DoRA's stay in float32, see model.py
            parameter.data = parameter.data.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)


def write_start(model: PreTrainedModel, folder: Path) -> None:
    """Write an adapter that has taken a part of the base into itself, as it begins: PEFT needs it to give that back."""
    config = model.peft_config["default"]
    init, config.init_lora_weights = config.init_lora_weights, True  # whoever reads it need not make it again
    model.save_pretrained(folder)
    config.init_lora_weights = init


def write_weights(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write adapter or model beside its place and rename it; a model takes its tokenizer along.

    An adapter that began with a part of the base (`write_start`) is written as one of twice its rank on the whole base.
    `weights` are the model's own, whole, where it lies in shards.
    """
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.config.use_cache = True
    start = folder.with_name(START)
    kept: dict[str, Any] = {"path_initial_model_for_weight_conversion": str(start)} if start.is_dir() else {}
    kept |= {"state_dict": weights} if weights else {}
    model.save_pretrained(staging, **kept)
    shutil.rmtree(start, ignore_errors=True)
    if folder.name == "model":
        tokenizer.save_pretrained(staging)
    if not list(staging.glob("*.safetensors")):
        raise WorkbenchError("no weights were written", where=str(folder))
    staging.rename(folder)


@dataclass(frozen=True)
class Before:
    """Fingerprints of every tensor before the first step, by parameter name."""

    trained: dict[str, str]
    frozen: dict[str, str]


def fingerprint(tensor: torch.Tensor) -> str:
    """A checksum of a tensor's bits that also feels a change of order; one pass, on the tensor's own device."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    place = torch.arange(1, len(words) + 1, device=words.device)
    return f"{tuple(tensor.shape)}:{int(words.sum())}:{int((words * place).sum())}"


def fingerprints(model: PreTrainedModel) -> Before:
    """Fingerprint every parameter as it is now."""
    named = list(model.named_parameters())
    return Before(
        {name: fingerprint(p) for name, p in named if p.requires_grad},
        {name: fingerprint(p) for name, p in named if not p.requires_grad},
    )


def prove_moved(model: PreTrainedModel, before: Before, kind: str) -> int:
    """The number of trained tensors that moved. WorkbenchError when a base tensor moved, or a trained one did not.

    In full fine-tuning only matrices are held to this: a norm's weights near 1 may keep their 16-bit value, and an
    expert that no row was routed to has no gradient.
    """
    now = {name: fingerprint(whole_tensor(p.detach())) for name, p in model.named_parameters()}
    changed = [name for name, mark in before.frozen.items() if now[name] != mark]
    if changed:
        raise WorkbenchError(
            f"{len(changed)} base tensors changed though they were frozen, the first {changed[0]}",
            where="training",
            remedy="this is a defect: the adapter does not describe the model that was trained",
        )
    still = [name for name, mark in before.trained.items() if now[name] == mark]
    shapes = {name: p.dim() for name, p in model.named_parameters()}
    held = [n for n in still if kind != "full" or (shapes[n] > 1 and "expert" not in n)]
    if held:
        raise WorkbenchError(
            f"{len(held)} of {len(before.trained)} trained tensors did not move, the first {held[0]}",
            where="training",
            remedy="raise method.learning_rate or method.max_steps, or choose other method.target_modules",
        )
    return len(before.trained) - len(still)
