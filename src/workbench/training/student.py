"""What a training needs of the machine: a plan that fits its memory, the student on its device, threads, and an end."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from workbench.engines.device import keep_freed_memory, release_freed_memory, threads_of
from workbench.training.batches import Plan, plan_of
from workbench.training.job import Job, Student, request_of
from workbench.training.losses import head_is_plain
from workbench.training.model import available_memory, fit, load_model
from workbench.training.targets import sequences
from workbench.training.weights import load_weights


def plan_that_fits(job: Job, device: str) -> Plan:
    """The plan with as many rows at once as memory takes, activations recomputed only where it must be."""
    lengths = [len(row.input_ids) for row in job.rows]
    read = [sum(len(part.input_ids) for part in sequences(row, job.targets.get(row.id))) for row in job.rows]

    def padded_tokens(micro: int) -> int:
        cuts = plan_of(lengths, job.method, job.seed, micro).cuts
        return max(len(cut) * max(read[row] for row in cut) for cut in cuts)

    micro, recomputed = fit(job.base, job.method, job.dtype, padded_tokens, available_memory(device))
    return plan_of(lengths, job.method, job.seed, micro, recomputed)


def load_student(job: Job, device: str, plan: Plan) -> Student:
    """The base model with its adapter, where the weights of the kind before are in it already, on the device."""
    longest = max(len(row.input_ids) for row in job.rows)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_model(job.base, job.method, dtype=job.dtype, device=device, longest=longest, seed=job.seed)
    if job.start is not None:
        load_weights(model, job.start.glob("*.safetensors"))
    if job.method.kind != "qlora":  # four-bit weights are where they were loaded to
        model.to(device)
    if plan.recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if job.method.kind != "full":
            model.enable_input_require_grads()
    decoder = model if job.method.kind == "full" else model.get_base_model()
    decoder.eval()
    plain = head_is_plain(decoder, torch.tensor([job.rows[0].input_ids[:256]], device=device))
    words = len(tokenizer)
    return Student(
        model, decoder, tokenizer, device, plain,
        vocabulary=words if words < decoder.get_output_embeddings().weight.shape[0] else None,
        batch_tokens=max(2 * plan.micro * longest, 2048), request=request_of(job),
    )  # fmt: skip


@contextmanager
def computing(device: str, threads: int | None) -> Iterator[None]:
    """With so many threads, freed memory kept for the next step, and Hugging Face quiet."""
    torch.set_num_threads(threads_of(threads))
    if device == "cpu":
        keep_freed_memory()
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


def release_memory() -> None:
    """Give back what a training held, on the device and in the process."""
    gc.collect()  # a model and its hooks hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_freed_memory()
