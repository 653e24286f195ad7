"""Greedy continuations of token rows, in length-sorted batches, with the start that all rows share read once.

The shared start (system prompt, instruction, few-shot examples) is kept once for the whole batch, not once a row:
a new token's queries of all rows meet its keys in one product, and one softmax runs over both parts, which is
exact (the idea of Hydragen, arXiv 2402.05099, with the softmax taken whole).
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.engines.device import keep_at_most
from workbench.errors import RequestError

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

MIN_PREFIX = 16  # tokens; a shorter one saves too little to be worth a second path
ATTENTION = "workbench_shared_prefix"


@dataclass(frozen=True)
class Decoded:
    """What one row said: its new ids with the stop token if one came, and the times.

    `logprobs` has each id's log-probability, `leads` its lead over the likeliest other one, in nats. `seconds` is the
    row's share of its batch and of the shared start; `latency` the whole batch's wall time, since a batch is answered
    whole; `first_token` the time until its first tokens were known.
    """

    ids: list[int]
    logprobs: list[float]
    leads: list[float]
    seconds: float
    latency: float
    first_token: float


@dataclass(frozen=True)
class Prefix:
    """Keys and values [1, key heads, P, width] of the shared start, one pair a layer; `read` collects who used them."""

    length: int
    layers: tuple[tuple[Any, Any], ...]
    read: set[int] = field(default_factory=set)


def answer_ids(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    max_new_tokens: int,
    stops: Collection[int],
    batch_tokens: int,
    grammar: Grammar | None = None,
) -> Iterator[tuple[int, Decoded]]:
    """(index, what that row said), batch by batch, the longest rows first; with a grammar nothing leaves it."""
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        prefix = read_prefix(model, rows)
    skip = prefix.length if prefix else 0
    shared = (time.perf_counter() - started) / max(1, len(rows))
    for batch in batches([len(row) - skip + max_new_tokens for row in rows], batch_tokens):
        started = time.perf_counter()
        with torch.inference_mode():
            new_ids, sure, first = _greedy(
                model, [rows[i][skip:] for i in batch], prefix, max_new_tokens, stops, grammar
            )
        keep_at_most()
        latency = time.perf_counter() - started
        seconds = latency / len(batch) + shared
        for i, ids, pairs in zip(batch, new_ids, sure, strict=True):
            logprobs, leads = ([float(pair[at]) for pair in pairs] for at in (0, 1))
            yield i, Decoded(ids, logprobs, leads, seconds, latency, first - started)


def common_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows start with; a row's last token never counts, so that each has one left to read."""
    if not rows:
        return 0
    low, high = min(rows), max(rows)  # in dictionary order, the two that part first
    same = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return min(same, min(map(len, rows)) - 1)


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens, longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        take = max(1, batch_tokens // lengths[order[0]])
        yield order[:take]
        order = order[take:]


def read_prefix(model: PreTrainedModel, rows: Sequence[list[int]]) -> Prefix | None:
    """Read the start that all rows share; None when it is short, or the model's attention cannot share it.

    That is so for attention other than ours, and for sliding windows, which would count tokens across the seam.
    """
    import torch
    from transformers import DynamicCache

    length = common_prefix(rows)
    cache = DynamicCache(config=model.config)
    plain = all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)
    if length < MIN_PREFIX or len(rows) < 2 or not plain or model.config._attn_implementation != ATTENTION:
        return None
    model(
        input_ids=torch.tensor([list(rows[0][:length])], device=model.device), past_key_values=cache, logits_to_keep=1
    )
    prefix = Prefix(length, tuple((layer.keys, layer.values) for layer in cache.layers))
    # A model class that does not hand the keyword on to its attention would ignore the prefix without a word.
    prefill(model, [rows[0][length : length + 1]], prefix)
    return prefix if prefix.read == set(range(len(prefix.layers))) else None


def left_padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as one tensor [B, T] that ends where each row ends, `fill` before it, and its mask of ones."""
    import torch

    width = max(map(len, rows))
    ids_BT = torch.full((len(rows), width), fill, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, width - len(row) :] = torch.tensor(row)
        mask_BT[at, width - len(row) :] = 1
    return ids_BT.to(device), mask_BT.to(device)


def prefill(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], prefix: Prefix | None
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
    """Read rows that follow the prefix, padded on the left.

    Gives the last position's logits [B, V], the cache of the rows' own tokens, their mask [B, T] and the last
    position's number [B, 1].
    """
    from workbench.engines.cache import new_cache

    ids_BT, mask_BT = left_padded(rows, 0, model.device)
    position_BT = (prefix.length if prefix else 0) + (mask_BT.cumsum(1) - 1).clamp(min=0)
    cache = new_cache(model.config)
    return _step(model, ids_BT, mask_BT, position_BT, cache, prefix), cache, mask_BT, position_BT[:, -1:]


def _step(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    mask: torch.Tensor,
    position_BT: torch.Tensor,
    cache: DynamicCache,
    prefix: Prefix | None,
) -> torch.Tensor:
    """Logits [B, V] of the last position."""
    more = {"shared_prefix": prefix} if prefix else {}
    out = model(
        input_ids=ids_BT, attention_mask=mask, position_ids=position_BT, past_key_values=cache, logits_to_keep=1, **more
    )
    return out.logits[:, -1]


def _greedy(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    prefix: Prefix | None,
    max_new_tokens: int,
    stops: Collection[int],
    grammar: Grammar | None,
) -> tuple[list[list[int]], list[list[tuple[float, float]]], float]:
    """New ids a row, of each its log-probability and lead, and the clock when the first ids were known."""
    import torch

    logits, cache, mask, position = prefill(model, rows, prefix)
    new_ids: list[list[int]] = [[] for _ in rows]
    sure: list[list[tuple[float, float]]] = [[] for _ in rows]
    live = list(range(len(rows)))  # row of the batch → row asked for; shrinks as rows finish
    done: set[int] = set()
    matchers = grammar.rows(len(rows)) if grammar else []
    first = 0.0
    while True:
        new = (grammar.mask(logits, [matchers[row] for row in live]) if grammar else logits).argmax(-1)
        # The model's own distribution in float32, whatever the grammar left of it.
        whole = logits.float()
        own = whole.gather(1, new[:, None])[:, 0]
        top = whole.topk(2)
        other = torch.where(top.indices[:, 0] == new, top.values[:, 1], top.values[:, 0])
        pairs = zip((own - whole.logsumexp(-1)).tolist(), (own - other).tolist(), strict=True)
        for row, token, pair in zip(live, new.tolist(), pairs, strict=True):
            if row not in done:
                new_ids[row].append(token)
                sure[row].append(pair)
                if grammar and token not in stops:
                    matchers[row].consume_token(token)
                if token in stops or len(new_ids[row]) == max_new_tokens:
                    done.add(row)
        first = first or time.perf_counter()
        if len(done) == len(rows):
            return new_ids, sure, first
        keep = [at for at, row in enumerate(live) if row not in done]
        # Leaving rows out copies the cache: worth it once an eighth of the batch would be computed for nothing.
        if len(keep) <= len(live) * 7 // 8:
            index = torch.tensor(keep, device=new.device)
            cache.batch_select_indices(index)
            new, mask, position = new[index], mask[index], position[index]
            live = [live[at] for at in keep]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        position = position + 1
        logits = _step(model, new[:, None], mask, position, cache, prefix)


def register_attention() -> None:
    """Make the attention below known to transformers, with SDPA's masks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None,
    shared_prefix: Prefix | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of rows' queries to the shared prefix (always visible) and to their own keys (by the mask).

    The query heads that share a key head are taken together, and all rows meet the prefix in one product: nothing
    is repeated or copied for a row or a head, which on a CPU was most of a decoding step. One softmax runs over
    both parts. Whole prompts without a prefix go to SDPA, which never holds their scores.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, queries, width = query.shape
    if shared_prefix is None and (queries > 1 or kwargs.get("position_bias") is not None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups, own = key.shape[1], key.shape[2]
    query = query.reshape(batch, groups, -1, width) * (width**-0.5 if scaling is None else scaling)
    scores = query @ key.transpose(2, 3)  # [B, key heads, query heads of one × queries, own keys]
    if attention_mask is None and queries > 1:  # transformers leaves a plain causal mask out
        attention_mask = torch.ones(1, 1, queries, own, dtype=torch.bool, device=key.device).tril()
    if attention_mask is not None:
        by_head = scores.view(batch, groups, -1, queries, own)
        scores = by_head.masked_fill(~attention_mask[:, :, None], float("-inf")).view(scores.shape)
    if shared_prefix is None:
        out = torch.softmax(scores, dim=-1) @ value
    else:
        shared_prefix.read.add(module.layer_idx)
        length = shared_prefix.length
        first_key, first_value = (part[0] for part in shared_prefix.layers[module.layer_idx])
        all_rows = query.transpose(0, 1).reshape(groups, -1, width)
        first = (all_rows @ first_key.transpose(1, 2)).view(groups, batch, -1, length).transpose(0, 1)
        weights = torch.softmax(torch.cat([first, scores], dim=-1), dim=-1)
        first = weights[..., :length].transpose(0, 1).reshape(groups, -1, length) @ first_value
        out = weights[..., length:] @ value + first.view(groups, batch, -1, first.shape[-1]).transpose(0, 1)
    return out.reshape(batch, heads, queries, -1).transpose(1, 2), None


# A JSON schema as a mask over the next token, one matcher a row (llguidance).

# Between two parts of an object: a space, or a new line with its indent, as llama.cpp's grammars have it. With white
# space without end a model may go on with it until its tokens are used up.
SPACE = r"( |\n[ \t]{0,20})?"


class Grammar:
    """The schema, compiled once for a tokenizer; `rows` starts it anew for so many rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, schema: Mapping[str, Any], vocabulary: int):
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

    def mask(self, logits_BV: torch.Tensor, matchers: Sequence[LLMatcher]) -> torch.Tensor:
        """The logits with every token that the grammar forbids at -inf; at the end only the stop token is left."""
        import torch

        words_BW = torch.full((len(matchers), (self.tokenizer.vocab_size + 31) // 32), -1, dtype=torch.int32)
        for row, matcher in enumerate(matchers):
            matcher.unsafe_compute_mask_ptr(words_BW[row].data_ptr(), words_BW.shape[1] * 4)
        bits = torch.arange(32, dtype=torch.int32)
        allowed_BV = ((words_BW[:, :, None] >> bits) & 1).bool().flatten(1)[:, : self.vocabulary]
        return logits_BV.masked_fill(~allowed_BV.to(logits_BV.device), float("-inf"))
