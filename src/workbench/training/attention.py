"""Rows packed into one sequence, each read as if it stood alone: attention that never leaves its own document.

A packed batch is (1, T): its documents one after the other, positions anew with each, no padding. What a token-wise
layer makes of it is what it makes of each document alone; only attention must be kept apart. On a CUDA device that is
`torch.nn.attention.varlen`; elsewhere documents of like length are laid side by side, padded within the attention
alone, and read by plain products or SDPA. transformers calls either through its attention interface.

A model whose layers carry a state from token to token, or whose attention is not computed here, mixes documents:
`unpackable` tries it, and names why.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "workbench_documents"
SHORT = 640  # tokens; for longer documents, the scores that plain products keep for the backward pass cost too much
LIKE = 0.75  # documents at least so long as the longest beside them are padded to it
ALONE = 1e-5  # of the largest value: what a document's hidden states may differ from those it has alone, in float32
ATTENDS = {"full_attention", "sliding_attention"}  # kinds of layers whose documents are kept apart here


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed batch lie.

    `positions` (1, T) count anew in each, `starts` (documents + 1,) int32 are where they begin, `longest` is the
    longest one's tokens. `groups` are places of tokens, (documents, tokens) each, shorter documents filled up with
    their last place; `back` (T,) is where in all groups, one after the other, a token stands first.
    """

    lengths: tuple[int, ...]
    positions: torch.Tensor
    starts: torch.Tensor
    longest: int
    groups: tuple[torch.Tensor, ...]
    back: torch.Tensor

    def to(self, device: str | torch.device) -> Documents:
        """The same on another device."""
        groups = tuple(group.to(device) for group in self.groups)
        positions, starts, back = (part.to(device) for part in (self.positions, self.starts, self.back))
        return Documents(self.lengths, positions, starts, self.longest, groups, back)


def documents_of(lengths: Sequence[int]) -> Documents:
    """Documents of so many tokens each, one after the other."""
    sizes = torch.tensor(lengths)
    ends = sizes.cumsum(0)
    firsts = ends - sizes
    groups, back, taken = [], torch.empty(int(ends[-1]), dtype=torch.long), 0
    for members in alike(lengths):
        width = max(lengths[member] for member in members)
        within = torch.arange(width)[None]
        size, first = sizes[members][:, None], firsts[members][:, None]
        groups.append(first + torch.minimum(within, size - 1))
        real = within < size
        back[(first + within)[real]] = taken + real.flatten().nonzero()[:, 0]
        taken += len(members) * width
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    starts = F.pad(ends, (1, 0)).int()
    return Documents(tuple(lengths), positions, starts, max(lengths), tuple(groups), back)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of the documents in groups of like length, the longest first."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if groups and lengths[number] >= LIKE * lengths[groups[-1][0]]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


READING: ContextVar[Documents | None] = ContextVar("READING", default=None)


@contextmanager
def reading(documents: Documents | None) -> Iterator[None]:
    """Within it, a model is given these documents: its masks are left out, and what looks at rows finds them."""
    token = READING.set(documents)
    try:
        yield
    finally:
        READING.reset(token)


def read(model: torch.nn.Module, ids_BT: torch.Tensor, documents: Documents | None, **more: object) -> Any:
    """What the model makes of a batch, padded on the right or, with `documents`, packed.

    Padded rows get no mask: causal attention alone keeps padding away from every real token.
    """
    if documents is None:
        return model(input_ids=ids_BT, use_cache=False, **more)
    with reading(documents):
        return model(input_ids=ids_BT, position_ids=documents.positions, use_cache=False, documents=documents, **more)


def use_documents(model: PreTrainedModel) -> None:
    """Have the model's attention computed here, of packed and of padded batches."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **about: None if READING.get() else sdpa_mask(*_, **about))
    model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    documents: Documents | None = None, sliding_window: int | None = None, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of (B, heads, T, D) as (B, T, heads, D); of packed documents each one to itself."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    if more.get("s_aux") is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError("its attention has sinks, or looks ahead")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, D)
    if fits_varlen((q, k, v), dropout, sliding_window):
        out = by_varlen(q, k, v, documents, scale, sliding_window)
    else:
        out = by_groups(q, k, v, documents, scale, sliding_window, dropout)
    return out[None], None


# CUDA: `varlen_attn`, whose signature has grown with torch 2.10, 2.11 and 2.12.


def varlen_takes() -> frozenset[str]:
    """The names that this torch's `varlen_attn` takes; none where there is no such function."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def fits_varlen(packed: Sequence[torch.Tensor], dropout: float, window: int | None) -> bool:
    """Whether `varlen_attn` computes this: 16 bits on a card, one width of heads up to 256, no dropout, and a window
    where it takes one.
    """
    if not packed[0].is_cuda or packed[0].dtype not in (torch.float16, torch.bfloat16) or dropout:
        return False
    widths, takes = {part.shape[-1] for part in packed}, varlen_takes()
    return len(widths) == 1 and max(widths) <= 256 and bool(takes) and (window is None or "window_size" in takes)


def by_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, scale: float, window: int | None
) -> torch.Tensor:
    """Attention (T, heads, D) of each document, by torch's kernel for sequences of many lengths."""
    from torch.nn.attention.varlen import varlen_attn

    takes, usual = varlen_takes(), query.shape[-1] ** -0.5
    settings: dict[str, Any] = {}
    if "window_size" in takes:
        settings["window_size"] = (-1 if window is None else window - 1, 0)  # so many tokens before a token's own
    else:
        settings["is_causal"] = True
    if "scale" in takes:
        settings["scale"] = scale
    elif not math.isclose(scale, usual):
        query = query * (scale / usual)
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in takes:
            settings["enable_gqa"] = True
        else:
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    starts, longest = documents.starts, documents.longest
    return varlen_attn(query, key, value, starts, starts, longest, longest, **settings)


# Everywhere else: documents of like length side by side.


@torch.compiler.disable
def by_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, scale: float,
    window: int | None, dropout: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Attention (T, heads, D) of each document. A document's own padding stands behind it, where nothing looks."""
    heads, made = query.shape[1], []
    for places in documents.groups:
        count, length = places.shape
        flat = places.flatten()
        q, k, v = (
            part.index_select(0, flat).view(count, length, *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )
        band = None
        if window is not None and window < length:
            band = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
        if length <= SHORT and not query.is_cuda:
            out = by_products(q, k, v, scale, band, dropout)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=band, dropout_p=dropout, is_causal=band is None, scale=scale,
                enable_gqa=k.shape[1] != heads,
            )  # fmt: skip
        made.append(out.transpose(1, 2).reshape(count * length, heads, -1))
    return torch.cat(made).index_select(0, documents.back)


def by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, band: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:  # fmt: skip
    """Causal attention (B, heads, T, D) whose softmax is taken in float32; the heads that share keys are one product.

    On the CPU and for short rows, plain products beat the fused kernel's backward by a third.
    """
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    scores = (query * scale).reshape(batch, shared, -1, width) @ key.transpose(2, 3)
    seen = band if band is not None else torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = scores.view(batch, shared, -1, length, length).masked_fill(~seen, float("-inf"))
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout)
    return (weights.view(batch, shared, -1, length) @ value).view(batch, heads, length, -1)


# Whether a model keeps documents apart.


def unpackable(decoder: PreTrainedModel, words: int, longest: int) -> str:
    """Why rows of up to `longest` tokens cannot be packed for this model; "" where they can.

    By its config first, then tried: another text before a document must leave its hidden states the very same, bit for
    bit, and they must be those that it has alone but for rounding. The model attends as it did when it cannot.
    """
    config = decoder.config.get_text_config()
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENDS)
    if strange:
        return f"its layers of the kind {', '.join(strange)} look past a document's border"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention caps its scores, which is not computed for packed rows"
    before = decoder.config._attn_implementation
    # A window shows in documents that are longer than it, and matters only where rows are.
    window = getattr(config, "sliding_window", None) or 0
    length = 31 if window >= longest else window + 31
    generator = torch.Generator().manual_seed(0)
    first, other, document = (torch.randint(words, (n,), generator=generator) for n in (23, 23, length))

    def last(documents: Documents | None, *parts: torch.Tensor) -> torch.Tensor:
        ids = torch.cat(parts)[None].to(decoder.device)
        with torch.no_grad():
            return read(decoder.base_model, ids, documents).last_hidden_state[0, -length:]

    alone = last(None, document)
    try:
        use_documents(decoder)
        at = documents_of([23, length]).to(decoder.device)
        one, two = last(at, first, document), last(at, other, document)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        why = f"it does not take packed rows ({(str(error).splitlines() or [type(error).__name__])[0]})"
    else:
        # bf16 keeps 8 bits, and rounds otherwise in another shape
        most = (ALONE if alone.dtype == torch.float32 else 2.0**-6) * alone.abs().max()
        why = ""
        # How many rows an expert is given hangs on the other text too, and so does its rounding.
        experts = any(hasattr(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
        if (one - two).abs().max() > (most if experts else 0):
            why = "what stands before a document in its row changes how it is read"
        elif (one - alone).abs().max() > most:
            why = "a document in a packed row is read otherwise than alone"
    if why and before is not None:
        decoder.set_attn_implementation(before)
    return why
