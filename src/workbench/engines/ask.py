"""What an engine is asked, and how: one call for many prompts, greedy, freely or within a JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from workbench.records import Answer, Message


class Ask(Protocol):
    """(prompts, max_new_tokens) → (index, Answer) as each finishes, in any order.

    With a JSON `schema` no token is taken that could not go on to an object of it: every answer that ends by itself
    satisfies it. Whatever the decoding, `Answer.logprob` is by the model's own, whole distribution.
    """

    def __call__(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[int, Answer]]: ...
