"""Start, ask and stop a local engine: each gives one function from prompts to answers, batched and greedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from workbench.engines.llamacpp import llamacpp_engine
from workbench.engines.transformers import transformers_engine
from workbench.records import Answer, Message

# (prompts, max_new_tokens) → (index, Answer) as each finishes, in any order.
Ask = Callable[[Sequence[Sequence[Message]], int], Iterator[tuple[int, Answer]]]

__all__ = ["Ask", "llamacpp_engine", "transformers_engine"]
