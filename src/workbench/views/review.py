"""What people have corrected on the traces in MLflow, as a JSONL file that `label` takes back."""

from __future__ import annotations

import json
from pathlib import Path

from workbench import errors
from workbench.errors import RequestError
from workbench.files import write_whole
from workbench.tracking import is_server, reviewed, store_uri
from workbench.views.ui import egress_of, say, tracking_of


def run(recipe: str, to: str, experiments: str, uri: str) -> int:
    """Write `{"id", "answer", "reviewer", "reviewed_at"}` for each corrected answer of the recipe's runs."""
    if not recipe or not to:
        raise RequestError(
            "which recipe, and into which file?",
            where="recipe" if not recipe else "to",
            remedy="review recipe=NAME to=reviewed.jsonl",
        )
    home = Path(experiments).resolve()
    folders = sorted(path.parent for path in (home / Path(recipe).stem).glob("*/events.jsonl"))
    if not folders:
        raise RequestError(
            f"{recipe} has no run in {home}", where="recipe", remedy=f"python -m workbench train recipe={recipe}"
        )
    rows: dict[str, dict[str, str]] = {}
    for folder in folders:
        tracking = tracking_of(folder, uri)
        if is_server(store_uri(tracking, home)) or Path(home / "mlflow.db").is_file():
            for row in reviewed(folder, tracking, home, egress_of(home)):
                if row["reviewed_at"] >= rows.get(row["id"], row)["reviewed_at"]:
                    rows[row["id"]] = row
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    write_whole(Path(to), text)
    say(f"{len(rows)} corrected answers of {len(folders)} runs are in {to}")
    if not rows:
        say("in MLflow, open a trace of the run and add an expectation named expected_response, with the right answer")
    return errors.OK
