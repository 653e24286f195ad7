"""A JSON schema as a mask over the next token, one matcher a row (llguidance)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import RequestError

# Between two parts of an object: a space, or a new line with its indent, as llama.cpp's grammars have it. With white
# space without end a model may go on with it until its tokens are used up.
SPACE = r"( |\n[ \t]{0,20})?"


class Grammar:
    """The schema, compiled once for a tokenizer; `rows` starts it anew for so many rows."""

    def __init__(self, tokenizer: Any, schema: Mapping[str, Any], vocabulary: int):
        import llguidance
        from llguidance import hf

        self.words = -(-vocabulary // 32)
        self.vocabulary = vocabulary
        self.tokenizer = hf.from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)))
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_pattern": SPACE}
        )
        wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, self.tokenizer)
        if wrong:
            raise RequestError(f"no grammar can be made of this schema: {' '.join(messages)}", where="evaluate.fields")
        self.first = llguidance.LLMatcher(self.tokenizer, grammar, log_level=0)

    def rows(self, count: int) -> list[Any]:
        """A fresh matcher for each row."""
        return [self.first.deep_copy() for _ in range(count)]

    def mask(self, logits_BV: Any, matchers: Sequence[Any]) -> Any:
        """The logits with every token that the grammar forbids at -inf; at the end only the stop token is left."""
        import torch

        words_BW = torch.full((len(matchers), (self.tokenizer.vocab_size + 31) // 32), -1, dtype=torch.int32)
        for row, matcher in enumerate(matchers):
            matcher.unsafe_compute_mask_ptr(words_BW[row].data_ptr(), words_BW.shape[1] * 4)
        bits = torch.arange(32, dtype=torch.int32)
        allowed_BV = ((words_BW[:, :, None] >> bits) & 1).bool().flatten(1)[:, : self.vocabulary]
        return logits_BV.masked_fill(~allowed_BV.to(logits_BV.device), float("-inf"))
