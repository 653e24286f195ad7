"""MLflow keeps the record: runs are fed to it from their own files, models are registered and proven there.

The only package that imports mlflow, and only inside functions, so that importing it costs nothing.
"""

from workbench.tracking.feed import catch_up
from workbench.tracking.outbound import Egress
from workbench.tracking.registry import register
from workbench.tracking.store import free_port, is_server, probe_store, serve_ui, shown, store_uri
from workbench.tracking.versions import resolve_source

__all__ = [
    "Egress",
    "catch_up",
    "free_port",
    "is_server",
    "probe_store",
    "register",
    "resolve_source",
    "serve_ui",
    "shown",
    "store_uri",
]
