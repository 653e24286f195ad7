"""Sources: one string names a model or a data set, wherever it lies; here it becomes a local path."""

from workbench.sources.bases import (
    quantized_by_name,
    read_object,
    refuse_rows_beyond,
    refuse_untrainable,
    unused_tokens,
)
from workbench.sources.digests import cache_folder, content_sha256, model_sha256, unchanged
from workbench.sources.hub_sizes import HubModel, hub_model
from workbench.sources.places import is_pattern, shipped_folder
from workbench.sources.resolve import (
    at_commit,
    content_digests,
    is_here,
    is_local,
    is_missing,
    is_moving,
    is_pinned,
    pinned_commit,
    resolve,
    resolve_all,
)
from workbench.sources.weights import (
    Weights,
    left_unread,
    made_once,
    model_folder,
    model_is_here,
    model_weights,
    refuse_broken_source,
    refuse_code,
)

__all__ = [
    "HubModel",
    "Weights",
    "at_commit",
    "cache_folder",
    "content_digests",
    "content_sha256",
    "hub_model",
    "is_here",
    "is_local",
    "is_missing",
    "is_moving",
    "is_pattern",
    "is_pinned",
    "left_unread",
    "made_once",
    "model_folder",
    "model_is_here",
    "model_sha256",
    "model_weights",
    "pinned_commit",
    "quantized_by_name",
    "read_object",
    "refuse_broken_source",
    "refuse_code",
    "refuse_rows_beyond",
    "refuse_untrainable",
    "resolve",
    "resolve_all",
    "shipped_folder",
    "unchanged",
    "unused_tokens",
]
