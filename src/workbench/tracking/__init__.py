"""MLflow keeps the record: runs are fed to it from their own files, models are registered and proven there.

The only package that imports mlflow, and only inside functions, so that importing it costs nothing.
"""

from workbench.tracking.bounds import GIVEN_UP, AwayError
from workbench.tracking.feed import catch_up
from workbench.tracking.feeder import follow
from workbench.tracking.outbound import Egress
from workbench.tracking.registry import register
from workbench.tracking.store import free_port, is_server, probe_store, serve_ui, shown, store_uri
from workbench.tracking.sweeps import end_sweep
from workbench.tracking.traces import reviewed
from workbench.tracking.versions import resolve_source

__all__ = [
    "GIVEN_UP",
    "AwayError",
    "Egress",
    "catch_up",
    "end_sweep",
    "follow",
    "free_port",
    "is_server",
    "probe_store",
    "register",
    "resolve_source",
    "reviewed",
    "serve_ui",
    "shown",
    "store_uri",
]
