"""Proofs on request: `verify egress` holds the log of what has left against its own chain and the ledger."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import RequestError
from workbench.views.show import show


def run(egress: bool, experiments: str, output: str) -> int:
    """Check what was asked for; an error names the first line that is not as it was written."""
    if not egress:
        raise RequestError("what should be verified?", where="verify", remedy="python -m workbench verify egress")
    from workbench.teacher.egress import verify
    from workbench.teacher.ledger import egress_hashes

    folder = Path(experiments)
    ledger = folder / "ledger.db"
    attempts = list(egress_hashes(ledger)) if ledger.is_file() else []
    lines = verify(folder / "egress.jsonl", attempts)
    told = {"log": str(folder / "egress.jsonl"), "lines": lines, "calls in the ledger": len(attempts), "state": "whole"}
    show("egress", {"egress": told}, output)
    return 0
