"""What a student says by itself: answers sampled prompt by prompt, kept in a file as they come and asked for once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.engines.ask import stop_ids
from workbench.engines.decode import left_padded
from workbench.engines.device import computed_in, device_of, keep_freed_memory, release_memory, threads_of
from workbench.files import append, write_whole
from workbench.recipe import Method
from workbench.records import digest
from workbench.training.batches import by_length
from workbench.training.model import load_model
from workbench.training.student import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 128  # prompts whose order is by length; windows follow each other in the order that the seed drew


@dataclass(frozen=True)
class Sample:
    """One sampled answer; `whole` when its stop token was sampled too."""

    text: str
    whole: bool


@dataclass(frozen=True)
class Asking:
    """How many answers to each prompt, at which temperature, how long (tokens), drawn from which seed.

    `stop` is the token that ends an answer, beside those that the model and its tokenizer name.
    """

    samples: int
    temperature: float
    max_new_tokens: int
    seed: int
    stop: int


# (prompts as token ids, how, the batch's own seed) → each prompt's answers
Draw = Callable[[Sequence[Sequence[int]], Asking, int], list[list[Sample]]]


@contextmanager
def student(
    base: Path,
    adapter: Path | None,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    device: str,
    threads: int | None,
    longest: int,
    seed: int,
) -> Iterator[Draw]:
    """The function that samples the student as it is: loaded at the first call, let go of at the end.

    `longest` is the longest prompt with its answer, in tokens.
    """
    device = device_of(device)
    loaded: list[Any] = []

    def draw(prompts: Sequence[Sequence[int]], how: Asking, batch_seed: int) -> list[list[Sample]]:
        if not loaded:
            torch.set_num_threads(threads_of(threads))
            if device == "cpu":
                keep_freed_memory()
            # A fresh adapter gives what the base gives, and takes time.
            plain = replace(method, kind="full") if adapter is None and method.kind == "lora" else method
            model = load_model(base, plain, dtype=computed_in(dtype, device), device=device, longest=longest, seed=seed)
            if adapter is not None:
                load_weights(model, adapter.glob("*.safetensors"))
            loaded.append(model if method.kind == "qlora" else model.to(device))
        return sampled(loaded[0].eval(), tokenizer, prompts, how, batch_seed)

    try:
        yield draw
    finally:
        loaded.clear()
        release_memory()


def answers(
    draw: Draw, prompts: Sequence[Sequence[int]], how: Asking, path: Path, *, of: str, batch_tokens: int
) -> Iterator[tuple[int, list[Sample]]]:
    """(prompt's number, its answers), in an order that the seed draws; whoever has enough asks no further.

    A batch (at most `batch_tokens` with its answers and padding) is in the file at `path`, flushed, before the first of
    it is given; what is there already is read. `of` tells whose answers they are: the file of another, or of other
    prompts, is begun anew.
    """
    key = digest([of, asdict(how), [list(prompt) for prompt in prompts]], 32)
    kept = read_kept(path, key)
    order = random.Random(how.seed).sample(range(len(prompts)), len(prompts))
    for first in range(0, len(order), WINDOW):
        window = order[first : first + WINDOW]
        lengths = [how.samples * (len(prompts[number]) + how.max_new_tokens) for number in window]
        for batch in by_length(lengths, batch_tokens):
            numbers = [window[at] for at in batch]
            missing = [number for number in numbers if number not in kept]
            if missing:
                batch_seed = int(digest([how.seed, missing], 8), 16)
                new = draw([prompts[number] for number in missing], how, batch_seed)
                kept |= zip(missing, new, strict=True)
                append(path, "".join(line_of(number, kept[number]) for number in missing))
            for number in numbers:
                yield number, kept[number]


def line_of(number: int, samples: Sequence[Sample]) -> str:
    """A prompt's answers as a line of the file, with its own digest."""
    values = {"prompt": number, "answers": [asdict(sample) for sample in samples]}
    return json.dumps({**values, "sha256": digest(values)}, ensure_ascii=False) + "\n"


def read_kept(path: Path, key: str) -> dict[int, list[Sample]]:
    """The answers in the file, by prompt. A line that a kill cut short goes, and so does all of another request.

    All of a file with a damaged line goes too: a batch is drawn from one seed, so a part would be drawn otherwise.
    """
    first = json.dumps({"key": key}) + "\n"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    # Not by splitlines(), which ends a line at characters that JSON leaves as they are.
    whole = [line + "\n" for line in text.split("\n")[:-1]] if text.startswith(first) else [first]
    try:
        kept = [json.loads(line) for line in whole[1:]]
        sound = all(values.pop("sha256") == digest(values) for values in kept)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        whole, kept = [first], []
    if "".join(whole) != text:
        write_whole(path, "".join(whole))
    return {values["prompt"]: [Sample(**sample) for sample in values["answers"]] for values in kept}


def sampled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], how: Asking, seed: int
) -> list[list[Sample]]:
    """`how.samples` answers to each prompt, as text.

    Rows of the head that no token has (padding of the vocabulary) are never drawn.
    """
    stops = stop_ids(model, tokenizer) | {how.stop}
    padding = range(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    torch.manual_seed(seed)
    samples = [sample_of(new, tokenizer, stops) for new in new_tokens(model, prompts, how, stops, padding)]
    return [samples[first : first + how.samples] for first in range(0, len(samples), how.samples)]


def new_tokens(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], how: Asking, stops: set[int], padding: Sequence[int]
) -> list[list[int]]:
    """What `how.samples` answers a prompt add to it, from the model's own distribution, nothing cut off it.

    From the global generator. What follows an answer's stop token is padding.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=True, temperature=how.temperature, top_k=0, top_p=1.0, num_return_sequences=how.samples,
        max_new_tokens=how.max_new_tokens, eos_token_id=sorted(stops), pad_token_id=min(stops), use_cache=True,
        suppress_tokens=list(padding) or None,
    )  # fmt: skip
    ids, mask = left_padded(prompts, min(stops), model.device)
    with torch.no_grad(), own_settings(model):
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return made[:, ids.shape[1] :].tolist()


def sample_of(new: list[int], tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> Sample:
    """New tokens up to the first stop token, as text."""
    end = next((at for at, token in enumerate(new) if token in stops), None)
    return Sample(tokenizer.decode(new[:end], skip_special_tokens=True), end is not None)


@contextmanager
def own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Without what the model's folder says of decoding: `generate` fills in from there what is not asked for.

    Qwen's repetition penalty, for one, would make the samples another student's.
    """
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before
