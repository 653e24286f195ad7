"""Proofs on request: a bundle in its real engine, or the log of what has left against its chain and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from workbench import errors
from workbench.bundles.checks import TEMPLATE, Check, static_checks
from workbench.bundles.manifest import read_manifest, read_text
from workbench.bundles.parity import read_parity
from workbench.bundles.prove import ask_engine, choose_engine, limits_of, trusted_key
from workbench.compress.format_check import really_quantized
from workbench.data.templates import refuse_template
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.scorers import deciding_score, portable
from workbench.pages.terminal import show
from workbench.recipe import Evaluate
from workbench.screen import SafeConsole
from workbench.sources.gguf_header import refuse_broken
from workbench.sources.trial import refuse_tokenizer
from workbench.training.shrink import model_under

NO_ENGINE = "none"


def run(words: Mapping[str, Any]) -> int:
    """Check what was asked for."""
    if words["bundle"]:
        return verify_bundle(Path(words["bundle"]).expanduser(), words["engine"], words["key"], words["output"])
    if words["egress"]:
        return verify_egress(words["experiments"], words["output"])
    raise RequestError(
        "what should be verified?",
        where="verify",
        remedy="python -m workbench verify bundle=FOLDER, or verify egress",
    )


def verify_egress(experiments: str, output: str) -> int:
    """Hold the log of what has left against its chain and the ledger; an error names the first line that is wrong."""
    from workbench.teacher.egress import verify
    from workbench.teacher.ledger import egress_hashes

    folder = Path(experiments)
    ledger = folder / "ledger.db"
    attempts = list(egress_hashes(ledger)) if ledger.is_file() else []
    lines = verify(folder / "egress.jsonl", attempts)
    facts = {
        "log": str(folder / "egress.jsonl"),
        "lines": lines,
        "calls in the ledger": len(attempts),
        "state": "whole",
    }
    show("egress", {"egress": facts}, output)
    return 0


def verify_bundle(folder: Path, engine: str, key: str, output: str) -> int:
    """Every check of a bundle, those in its engine too unless `engine=none`; exit code 3 when one fails."""
    manifest = read_manifest(folder)
    checks = static_checks(folder, public_key=trusted_key(key), really_quantized=really_quantized)
    if engine != NO_ENGINE:
        # An engine is started on a folder that is known to hold no code, and on no other. What a manifest names is
        # only opened or fetched when one who is trusted here has signed it.
        verdicts = {check.name: check.passed for check in checks}
        if not all(verdicts[name] for name in ("files", "no_code", "quantized")):
            checks.append(Check("loads", False, "not tried: see above"))
        elif manifest.get("base") and not verdicts["signature"]:
            why = "not tried: its base is neither fetched nor opened, for no key that is trusted here names it"
            checks.append(Check("loads", False, why))
        else:
            checks += in_engine(folder, manifest, engine)
    passed = all(check.passed for check in checks)
    if output == "json":
        show(str(folder), {"passed": passed, "checks": [asdict(check) for check in checks]}, output)  # type: ignore[dict-item]
    else:
        SafeConsole(highlight=False).print(check_table(str(folder), checks, passed))
    return errors.OK if passed else errors.GATE_SAID_NO


def in_engine(folder: Path, manifest: Mapping[str, Any], wanted: str) -> list[Check]:
    """Load the bundle in its engine and hold what it says against training's record."""
    home = folder.resolve()
    try:
        refuse_hostile(home)
    except RequestError as error:
        return [Check("loads", False, f"not tried: {error.what}")]
    references = read_parity(home) or read_parity(home.parent, f"{home.name}.parity.json")
    if not references:
        return [Check("parity", True, "not asked: the held-out rows are not public and stay with the run that made it")]
    base = manifest.get("base")
    try:
        engine = choose_engine(folder, manifest["format"], wanted)
        under = model_under(base) if base else None
        score = partial(deciding_score, evaluate_of(manifest))
        _, checks = ask_engine(home, engine, references, limits_of(manifest), score=score, base=under)
    except RequestError:
        raise
    except WorkbenchError as error:
        return [Check("loads", False, error.what)]
    return checks


def refuse_hostile(folder: Path) -> None:
    """RequestError for what would keep an engine at work for ever: the folder may be a stranger's."""
    refuse_tokenizer(folder)
    if (folder / TEMPLATE).is_file():
        refuse_template(read_text(folder / TEMPLATE), str(folder / TEMPLATE))
    for path in folder.glob("*.gguf"):
        refuse_broken(path)


def evaluate_of(manifest: Mapping[str, Any]) -> Evaluate:
    """How answers were scored when the bundle was made; never by a function that a stranger's bundle names."""
    facts = manifest.get("scoring") or {"scorer": "exact_match", "fields": [], "primary": None}
    names = ("scorer", "fields", "labels", "primary")
    return portable(Evaluate(**{name: facts[name] for name in names if name in facts}))[0]


def check_table(title: str, checks: Sequence[Check], passed: bool) -> Table:
    """One row a check."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for check in checks:
        mark = Text("✓", style="green") if check.passed else Text("✗", style="bold red")
        table.add_row(mark, check.name, Text(check.why))
    table.add_row("", "", Text("it stands" if passed else "it does not stand", style="bold"))
    return table
