"""Export: a proven bundle, from the registry or a run, to a folder or an object store; the very same bytes."""

from __future__ import annotations

from pathlib import Path

from workbench.bundles.prove import refuse_failed, trusted_key
from workbench.bundles.transfer import copy_bundle, shown
from workbench.command import command
from workbench.engines.served import available, engine_for
from workbench.errors import RequestError
from workbench.files import temporary_folder
from workbench.screen import SafeConsole
from workbench.sources import cache_folder
from workbench.stages.bundle import bundle_checks
from workbench.tracking import resolve_source

SCREEN = SafeConsole(stderr=True, highlight=False)
MODELS = ("models:/", "mlflow:models:/")


def run(source: str, to: str, key: str, experiments: str = "experiments", uri: str = "") -> int:
    """Copy the bundle that `source` names to `to`: `models:/NAME@ALIAS`, `models:/NAME/3`, or a bundle's folder.

    Nothing is sent that does not stand hashes, signature and the other static checks.
    """
    if not source or not to:
        raise RequestError(
            "what is exported, and where to?",
            where="to" if source else "from",
            remedy="python -m workbench export from=models:/NAME@champion to=FOLDER_OR_URL",
        )
    # In the cache, not where the system keeps temporary files: a model is large, and a kill would leave it there.
    with temporary_folder(cache_folder() / "fetched") as temporary:
        folder = Path(source).expanduser()
        if source.startswith(MODELS):
            folder = resolve_source(
                f"mlflow:{source.removeprefix('mlflow:')}",
                temporary / "bundle",
                trusted_key(key),
                Path(experiments),
                uri,
            )
        refuse_failed(bundle_checks(folder, key), source)
        copy_bundle(folder, to)
    SCREEN.print(f"exported {source} to {shown(to)}", markup=False, soft_wrap=True)
    if "://" not in to:
        verb = "serve" if available(engine_for(Path(to))) is None else "chat"  # what no server here can load
        SCREEN.print(f"next: {command(verb, f'bundle={to}')}", markup=False, soft_wrap=True)
    return 0
