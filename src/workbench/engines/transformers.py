"""Ask a model folder through transformers: chat template in, greedy answer out."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.dialects import MARKS, opened_by, parted
from workbench.engines.ask import Ask, likely, stop_ids
from workbench.engines.decode import ATTENTION, Grammar, answer_ids, register_attention
from workbench.engines.device import computed_in, device_of, keep_freed_memory, release_memory, threads_of, widen
from workbench.errors import RequestError, WorkbenchError
from workbench.records import Answer, Message, Tools, message_dicts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPENING_TOKENS = 8  # as many as a prompt's last words may have that begin the thoughts


@contextmanager
def transformers_engine(
    model_dir: Path,
    *,
    adapter_dir: Path | None = None,
    device: str = "auto",
    batch_tokens: int = 8192,
    threads: int | None = None,
    chat_template: str | None = None,
) -> Iterator[Ask]:
    """Load a safetensors folder (and an unmerged PEFT adapter on it) and give the function that asks it.

    Weights keep the dtype they were saved in, but for a CPU that computes float32 alone: there they are widened to it.
    A w8a8 folder on a CPU multiplies int8 by int8, see int8.py. Any other
    compressed-tensors folder is run as compressed-tensors defines it: weights times their scales are held in the
    model's 16-bit dtype, and inputs are rounded to their format and multiplied back. The answers are the quantized
    model's; the speed is not, since the products themselves are taken in 16 bits.

    Prompts go through the tokenizer's chat template (or `chat_template`, its text) with its generation prompt. The
    next token is always the most likely one. `batch_tokens` bounds a batch's padded tokens; a batch is answered whole
    before it is yielded: `Answer.seconds` is its wall time over its rows, `latency` that time whole, `first_token` its
    reading of the prompts. `tokens_out` counts the stop token, log-probabilities do not. A `schema` becomes a mask
    over each next token.
    """
    import torch

    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(threads))
    loaded: list[PreTrainedModel] = []  # let go of at the end, whoever still holds the function
    try:
        place = torch.device(device_of(device))
        model, tokenizer = load(model_dir, adapter_dir, place, chat_template)
        loaded.append(model)
        del model

        def ask(
            prompts: Sequence[Sequence[Message]],
            max_new_tokens: int,
            schema: Mapping[str, Any] | None = None,
            tools: Sequence[Tools] | None = None,
        ) -> Iterator[tuple[int, Answer]]:
            return answers_of(loaded[0], tokenizer, prompts, max_new_tokens, batch_tokens, schema, tools)

        yield ask
    finally:
        torch.set_num_threads(before)
        loaded.clear()
        release_memory()


def answers_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_tokens: int = 8192,
    schema: Mapping[str, Any] | None = None,
    tools: Sequence[Tools] | None = None,
) -> Iterator[tuple[int, Answer]]:
    """(index, greedy answer) of each prompt, batch by batch, of a model that is loaded."""
    stops = stop_ids(model, tokenizer)
    if not stops:
        raise WorkbenchError("neither tokenizer nor generation_config.json names an end-of-turn token")
    rows = [prompt_tokens(tokenizer, prompt, tools[at] if tools else ()) for at, prompt in enumerate(prompts)]
    grammar = Grammar(tokenizer, schema, model.get_output_embeddings().weight.shape[0]) if schema else None
    for index, row in answer_ids(model, rows, max_new_tokens, stops, batch_tokens, grammar):
        ids = row.ids
        finish: Literal["stop", "length"] = "stop" if ids[-1] in stops else "length"
        said_ids = len(ids) - (finish == "stop")
        text = text_of(tokenizer, ids[:said_ids])
        sure = likely(row.logprobs[:said_ids], row.leads[:said_ids])
        # The prompt may have begun the thoughts: what it ends with tells.
        own = parted(opened_by(tokenizer.decode(rows[index][-OPENING_TOKENS:])) + text)
        thought = 0
        if own.thoughts:
            after = tokenizer(own.answer, add_special_tokens=False)["input_ids"]
            thought = max(0, len(ids) - len(after) - (finish == "stop"))
        yield (
            index,
            Answer(
                own.answer, finish, len(rows[index]), len(ids), row.seconds, row.latency, row.first_token, sure.logprob,
                thoughts=own.thoughts, tokens_thought=thought,
                mean_logprob=sure.mean, least_logprob=sure.least, margin=sure.margin,
            ),
        )  # fmt: skip


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], tools: Tools = ()) -> list[int]:
    """The token ids of a prompt and the functions that it may call, by the chat template, ready for the answer."""
    functions = [dict(tool) for tool in tools] or None
    return list(
        tokenizer.apply_chat_template(
            message_dicts(prompt), tools=functions, add_generation_prompt=True, return_dict=False
        )
    )


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """An answer's text without special tokens, but for those that mark its thoughts and calls."""
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not MARKS.intersection(special.values()):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    kept = [number for number in ids if special.get(number, "") in MARKS or number not in special]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def load(
    model_dir: Path, adapter_dir: Path | None, place: torch.device, chat_template: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (evaluation mode, on `place`) and tokenizer of a local folder; RequestError when it cannot be asked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from workbench.engines.int8 import run_in_int8

    if not (model_dir / "config.json").is_file():
        raise RequestError("no config.json: not a model folder", where=str(model_dir))
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise RequestError(
            "the tokenizer has no chat template", where=str(model_dir), remedy="set model.chat_template to a Jinja file"
        )
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors has progress bars of its own
            model = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype="auto", local_files_only=True, use_safetensors=True, **placed(model_dir, place)
            )
            if adapter_dir is None and place.type == "cpu":
                run_in_int8(model)
            if getattr(model.config, "quantization_config", None) is not None:  # and it unpacks at the first forward
                with torch.no_grad():
                    model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
    finally:
        logging.enable_progress_bar()
    if model.config._attn_implementation == "sdpa":  # a model that asks for another attention keeps it
        register_attention()
        model.set_attn_implementation(ATTENTION)
    if adapter_dir is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter_dir), local_files_only=True)
    packed = "compressed-tensors" in str(getattr(model.config, "quantization_config", ""))  # computed as it says
    if computed_in("bfloat16", place.type) == "float32" and not packed:
        widen(model)
    if adapter_dir is not None or not placed(model_dir, place):  # four-bit weights are where they were loaded to
        model = model.to(place)
    return model.eval(), tokenizer


def placed(model_dir: Path, place: torch.device) -> dict[str, Any]:
    """How four-bit weights of bitsandbytes are loaded: onto their device at once, else they choose one themselves."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    return {"device_map": {"": str(place)}} if method == "bitsandbytes" else {}
