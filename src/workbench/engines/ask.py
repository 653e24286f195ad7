"""What an engine is asked: one call for many prompts, greedy, freely or within a schema; and what ends an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from workbench.files import read_json
from workbench.records import Answer, Message, Tools


class Ask(Protocol):
    """(prompts, max_new_tokens) → (index, Answer) as each finishes, in any order.

    With a JSON `schema` no token is taken that could not go on to an object of it: every answer that ends by itself
    satisfies it. Whatever the decoding, log-probabilities are by the model's own, whole distribution. `tools` are the
    functions that each prompt may call, one after the other; no engine constrains what is called.
    """

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> Iterator[tuple[int, Answer]]: ...


# How likely an engine found what it said: one definition for every engine, streamed or not.


class Likely(NamedTuple):
    """The tokens of an answer in short, as `records.Answer` has them: sum, mean, least and least lead, in nats."""

    logprob: float | None = None
    mean: float | None = None
    least: float | None = None
    margin: float | None = None


def likely(logprobs: Sequence[float], leads: Sequence[float]) -> Likely:
    """Of the answer's tokens without the one that ends it; `leads` over the likeliest other token, where known."""
    if not logprobs:
        return Likely()
    whole = sum(logprobs)
    return Likely(whole, whole / len(logprobs), min(logprobs), min(leads) if len(leads) == len(logprobs) else None)


def likely_served(entries: Sequence[Mapping[str, Any]], tokens_out: int, *, stopped: bool) -> Likely:
    """The same of what a server tells: an entry a token with its `logprob` and `top_logprobs`.

    vLLM tells every token, llama.cpp none that ends within a character, nor, streamed, the one that ends the answer:
    that one has its place or no text.
    """
    ended = stopped and bool(entries) and (len(entries) == tokens_out or not entries[-1].get("bytes", True))
    own = entries[: len(entries) - ended]
    return likely([float(entry["logprob"]) for entry in own], [lead for lead in map(lead_of, own) if lead is not None])


def lead_of(entry: Mapping[str, Any]) -> float | None:
    """How far a token leads the likeliest other one; negative where that is likelier. None where no other is told."""
    same = (entry.get("id"), entry.get("bytes"), entry.get("token"))
    others = [e for e in entry.get("top_logprobs") or () if (e.get("id"), e.get("bytes"), e.get("token")) != same]
    return float(entry["logprob"]) - max(float(e["logprob"]) for e in others) if others else None


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
