"""Sources: one string names a model or a data set, wherever it lies; here it becomes a local path."""

from workbench.sources.resolve import cache_folder, content_digests, is_here, is_local, resolve, shipped_folder
from workbench.sources.weights import model_folder, model_is_here, refuse_code

__all__ = [
    "cache_folder",
    "content_digests",
    "is_here",
    "is_local",
    "model_folder",
    "model_is_here",
    "refuse_code",
    "resolve",
    "shipped_folder",
]
