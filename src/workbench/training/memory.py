"""How much memory training takes, from the model's sizes alone; no torch, so that `plan` can ask."""

from __future__ import annotations

from workbench.recipe import Method, Model

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Saved for the backward pass by one decoder layer, in hidden-size units a token: norms, projections, attention,
# MLP and their adapters. Fitted on a Llama shape; within a third of what was measured.
SAVED_A_LAYER = 34


def estimate_memory(model: Model, method: Method, *, tokens: int | None = None) -> dict[str, int]:
    """Bytes for weights, gradients and optimizer, activations, and their total; zeros when sizes are unknown.

    `tokens` is how many go through one forward pass; null: the micro batch at half of `max_length`.
    """
    if not (model.parameters and model.layers and model.hidden_size):
        return {"weights": 0, "trained": 0, "activations": 0, "total": 0}
    width = BYTES[model.dtype]
    embedding = model.vocabulary * model.hidden_size
    bits = {"qlora": 0.55}.get(method.kind, float(width))  # NF4 with double quantization: 4.4 bits a weight
    weights = int((model.parameters - embedding) * bits + embedding * width)
    trained = model.parameters if method.kind == "full" else adapter_parameters(model, method)
    # Gradient and two AdamW moments in the weights' own type; 8-bit moments are a byte each.
    state = width + (2 if method.optimizer == "adamw_8bit" else 2 * width)
    through = tokens or micro_batch(method) * method.max_length // 2
    saved = SAVED_A_LAYER * model.hidden_size * width
    layers = 1 if method.checkpointing == "on" else model.layers
    activations = through * (saved * layers + (2 * model.hidden_size * model.layers if layers == 1 else 0))
    parts = {"weights": weights, "trained": trained * state, "activations": activations}
    return parts | {"total": sum(parts.values())}


def adapter_parameters(model: Model, method: Method) -> int:
    """Parameters of adapters on every linear layer of a Llama shape: four projections of width, three of the MLP."""
    wide = model.intermediate_size or 3 * model.hidden_size
    return method.rank * model.layers * (8 * model.hidden_size + 3 * (model.hidden_size + wide))


def micro_batch(method: Method) -> int:
    """Rows a forward pass: as set, or the most that divide the batch and stay within 4,096 tokens."""
    if method.micro_batch_size:
        return method.micro_batch_size
    fits = [n for n in range(1, method.batch_size + 1) if method.batch_size % n == 0 and n * method.max_length <= 4096]
    return max(fits, default=1)
