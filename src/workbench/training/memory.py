"""How many bytes a training takes: from the shapes of a decoder and what autograd keeps of it. Nothing imports torch.

What a layer keeps is counted tensor by tensor, as transformers' Llama and Qwen3 classes run with PEFT's LoRA: 184,680
bytes a token for Llama-8B's shape and 188,936 for Qwen3-8B's in bfloat16 with rank 16, both as measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.recipe import Method, Model
from workbench.recipe.methods import distilled

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
NF4_BYTES = 0.52  # 4 bits, and the scales after double quantization (arXiv 2305.14314)
HEAD_ROWS = 512  # rows whose float32 logits exist at once: losses.ROWS_A_CHUNK
DISTIL_ROWS, DISTIL_COPIES = 256, 7  # losses.ROWS_AT_ONCE, and the float32 tensors of rows × vocabulary beside it
SHORT_ROW = 640  # tokens; beyond, the attention scores that plain products keep for the backward pass cost too much
SHARE_OF_MEMORY = 0.8
CHECKPOINTS = 4  # at once: the two that are kept, the best step's, and the one that is being written


@dataclass(frozen=True)
class Shape:
    """What an estimate needs to know of a decoder; 0 and None are not known.

    `queries` and `keys` are the widths of what attention compares, `heads` and `key_heads` how many parts they have;
    `tied` says whether embedding and head are one matrix, `head_norms` whether each head's queries and keys are normed.
    """

    parameters: int
    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    queries: int = 0
    keys: int = 0
    heads: int = 0
    key_heads: int = 0
    tied: bool | None = None
    head_norms: bool = False

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """`queries`, `keys`, `heads` and `key_heads`; where they are not known as most families have them."""
        queries = self.queries or self.hidden
        heads = self.heads or max(1, queries // 128)
        return queries, self.keys or queries // 4, heads, self.key_heads or max(1, heads // 4)

    @property
    def ends(self) -> int:
        """Parameters of the embedding and, where it is a matrix of its own, of the head."""
        one = self.vocabulary * self.hidden
        if self.tied is not None:
            return one if self.tied else 2 * one
        queries, keys, *_ = self.widths
        body = self.layers * (2 * self.hidden * (queries + keys) + 3 * self.hidden * self.mlp)
        return 2 * one if self.parameters - body > 1.5 * one else one


def shape_named(model: Model) -> Shape:
    """The shape that a recipe's keys give."""
    return Shape(model.parameters, model.layers, model.hidden_size, model.intermediate_size, model.vocabulary)


def shape_of(base: Path) -> Shape:
    """The shape of a model folder, from its config.json and the heads of its safetensors."""
    config = json.loads((base / "config.json").read_text())
    config = config.get("text_config", config)
    names = {name: shape for path in base.glob("*.safetensors") for name, shape in stored_shapes(path).items()}
    stored = BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    size = sum(p.stat().st_size for p in base.glob("*.safetensors"))
    hidden, heads = config.get("hidden_size", 0), config.get("num_attention_heads") or 0
    width = config.get("head_dim") or (hidden // heads if heads else 0)
    key_heads = config.get("num_key_value_heads") or heads
    return Shape(
        size // stored, config.get("num_hidden_layers", 0), hidden, config.get("intermediate_size") or 4 * hidden,
        config.get("vocab_size", 0), heads * width, key_heads * width, heads, key_heads,
        tied=not any(name.endswith("lm_head.weight") for name in names),
        head_norms=any(name.endswith("q_norm.weight") for name in names),
    )  # fmt: skip


def stored_shapes(path: Path) -> dict[str, list[int]]:
    """Every tensor's shape, by its name, from the head of a safetensors file."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: about["shape"] for name, about in header.items() if name != "__metadata__"}


def estimate_memory(model: Model, method: Method) -> dict[str, Any]:
    """Bytes that training takes on a GPU, part by part and in all, for rows of `method.max_length` tokens.

    Keys: `weights`, `adapter`, `gradients`, `optimizer`, `update`, `activations`, `logits`, `total`, and how it was
    counted: `trainable_parameters`, `micro_batch_size`, `checkpointing`. Sizes the recipe does not give count as 0.
    """
    micro = method.micro_batch_size or 1
    again = method.checkpointing == "on"
    return footprint(shape_named(model), method, model.dtype, micro, method.max_length, again, device="cuda")


def kept_of_layer(shape: Shape, method: Method, width: int, scores: int = 0) -> int:
    """Bytes that autograd keeps of one token in one layer, in a dtype of `width` bytes.

    `scores` is the length of the rows where attention is plain products, which keep their scores; 0: it is fused.
    """
    queries, keys, heads, key_heads = shape.widths
    norms = 8 * shape.hidden + 8  # the float32 input of both, and the inverse of its root mean square
    if shape.head_norms:
        norms += 4 * (queries + keys + heads + key_heads)
    read = shape.hidden + queries + shape.hidden  # what the projections of attention, its output's and the MLP's read
    compared = 3 * queries if scores else queries + 2 * keys  # plain products repeat keys and values for every head
    kept = width * (read + compared + 4 * shape.mlp)
    kept += heads * scores * (4 + (width if width < 4 else 0)) if scores else 4 * heads
    # An adapter keeps what it has narrowed; norms that are trained keep what they scale.
    scaled = 2 * shape.hidden + (queries + keys if shape.head_norms else 0)
    return norms + kept + width * (scaled if method.kind == "full" else 7 * method.rank)


def footprint(
    shape: Shape,
    method: Method,
    dtype: str,
    micro: int,
    tokens: int,
    checkpointing: bool,
    *,
    device: str = "cpu",
    longest: int | None = None,
    beside: int = 0,
) -> dict[str, Any]:
    """`estimate_memory` for micro-batches of `micro` rows of `tokens` tokens, computed in `dtype` on `device`.

    `longest` is the longest row (tokens; None: `tokens`), `beside` the bytes of a teacher's weights that are there too.
    """
    width, read = BYTES[dtype], micro * tokens
    queries, keys, *_ = shape.widths
    one = shape.vocabulary * shape.hidden
    through = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys) + 3 * (shape.hidden + shape.mlp)
    adapter = method.rank * shape.layers * through
    trainable = shape.parameters if method.kind == "full" else adapter
    weights = shape.parameters * width
    if method.kind == "qlora":  # embedding and head stay as they are
        weights = round((shape.parameters - shape.ends) * NF4_BYTES + shape.ends * width)
    eager = device == "cpu" and (longest or tokens) <= SHORT_ROW
    a_layer = kept_of_layer(shape, method, width, (longest or tokens) if eager else 0)
    kept = shape.layers * width * shape.hidden + a_layer if checkpointing else shape.layers * a_layer
    kept += width * (3 * shape.mlp + 2 * shape.hidden) + 4 * shape.hidden  # a layer's gradients, and the last norm
    rows, copies = min(read, HEAD_ROWS), 8 + width
    if any(kind.logprobs or kind.weights for kind in distilled(method.distil)):
        rows, copies = min(read, DISTIL_ROWS), 4 * DISTIL_COPIES + width
    # On a CPU a 16-bit head is widened for its product; one that is trained has a float32 gradient, and a scaled copy.
    head = (4 * one if device == "cpu" and width < 4 else 0) + (8 * one if method.kind == "full" else 0)
    parts = {
        "weights": weights,
        "adapter": 0 if method.kind == "full" else adapter * width,
        "gradients": trainable * width,
        "optimizer": trainable * states_of(method, dtype),
        # The gradients of float32 masters, and what an update holds of them at once.
        "update": 0 if method.optimizer == "adamw_8bit" else trainable * (4 if dtype == "float32" else 8),
        "activations": kept * read,
        "logits": copies * rows * shape.vocabulary + head,
        "teacher": beside,
    }
    return {
        **parts,
        "total": sum(parts.values()),
        "trainable_parameters": trainable,
        "micro_batch_size": micro,
        "checkpointing": checkpointing,
    }


def states_of(method: Method, dtype: str) -> int:
    """Bytes a trained parameter that the optimizer keeps: two moments, and a float32 master beside 16-bit weights."""
    return 2 if method.optimizer == "adamw_8bit" else 8 if dtype == "float32" else 12


def checkpoint_bytes(shape: Shape, method: Method, dtype: str) -> int:
    """Bytes of one checkpoint: the weights that train, and the optimizer's state."""
    trainable = footprint(shape, method, dtype, 1, 1, False)["trainable_parameters"]
    return trainable * (BYTES[dtype] + states_of(method, dtype))


def training_bytes(shape: Shape, method: Method, dtype: str) -> int:
    """Bytes on the disk of the checkpoints that lie there at once, and of the adapter or model at the end."""
    return CHECKPOINTS * checkpoint_bytes(shape, method, dtype) + trained_bytes(shape, method, dtype)


def trained_bytes(shape: Shape, method: Method, dtype: str) -> int:
    """Bytes on the disk of what a training ends with: the adapter, or the model."""
    return footprint(shape, method, dtype, 1, 1, False)["trainable_parameters"] * BYTES[dtype]


def fit(
    base: Path,
    method: Method,
    dtype: str,
    padded_tokens: Callable[[int], int],
    available: int,
    *,
    device: str = "cpu",
    longest: int | None = None,
) -> tuple[int, bool]:
    """Rows a forward pass and whether to recompute activations: the most rows that fit without, else with.

    `padded_tokens(micro)` gives the tokens, padding included, of the largest micro-batch of so many rows.
    """
    parts = fitting(shape_of(base), method, dtype, padded_tokens, available, device=device, longest=longest)
    return parts["micro_batch_size"], parts["checkpointing"]


def fitting(
    shape: Shape,
    method: Method,
    dtype: str,
    padded_tokens: Callable[[int], int],
    available: int,
    *,
    device: str = "cpu",
    longest: int | None = None,
    beside: int = 0,
) -> dict[str, Any]:
    """The `footprint` of what `fit` chooses."""
    divisors = [n for n in range(method.batch_size, 0, -1) if method.batch_size % n == 0]
    sizes = [method.micro_batch_size] if method.micro_batch_size else divisors
    ways = {"on": (True,), "off": (False,), "auto": (False, True)}[method.checkpointing]
    parts: dict[str, Any] = {}
    for checkpointing in ways:
        for micro in sizes:
            parts = footprint(
                shape, method, dtype, 1, padded_tokens(micro), checkpointing, device=device,
                longest=longest or padded_tokens(1), beside=beside,
            )  # fmt: skip
            parts["micro_batch_size"] = micro
            if parts["total"] <= available * SHARE_OF_MEMORY:
                return parts
    return parts  # the estimate is rough: try with the least rather than refuse
