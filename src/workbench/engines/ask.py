"""What an engine is asked: one call for many prompts, greedy, freely or within a schema; and what ends an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from workbench.files import read_json
from workbench.records import Answer, Message, Tools


class Ask(Protocol):
    """(prompts, max_new_tokens) → (index, Answer) as each finishes, in any order.

    With a JSON `schema` no token is taken that could not go on to an object of it: every answer that ends by itself
    satisfies it. Whatever the decoding, `Answer.logprob` is by the model's own, whole distribution. `tools` are the
    functions that each prompt may call, one after the other; no engine constrains what is called.
    """

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> Iterator[tuple[int, Answer]]: ...


# What ends an answer: one model names it in up to three places, and who knows fewer than all of them never stops.


def stop_ids(model: Any = None, tokenizer: Any = None) -> set[int]:
    """The ids of every token that ends an answer: those of the model's generation config, and the tokenizer's own.

    `model` is a model folder or a loaded model. Either may be left out; the set is empty when nothing names a token.
    """
    named: Any = None
    if isinstance(model, Path):
        named = generation_config(model).get("eos_token_id")
    elif model is not None:
        named = model.generation_config.eos_token_id
    ids = [*(named if isinstance(named, list) else [named]), getattr(tokenizer, "eos_token_id", None)]
    return {number for number in ids if number is not None}


def generation_config(folder: Path) -> dict[str, Any]:
    """A model folder's generation_config.json; empty when it has none."""
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}
