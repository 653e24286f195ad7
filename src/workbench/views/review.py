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
    """Write `{"id", "answer", "by", "at"}` for each corrected answer of the recipe's runs: what `teacher.review` reads.

    Corrected answers to test rows stay apart: nobody is to train on them.
    """
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
    rows: dict[str, dict[str, dict[str, str]]] = {"label": {}, "evaluate": {}}
    for folder in folders:
        tracking = tracking_of(folder, uri)
        if is_server(store_uri(tracking, home)) or Path(home / "mlflow.db").is_file():
            for stage, reviews in reviewed(folder, tracking, home, egress_of(home)).items():
                for name, row in reviews.items():
                    if row["at"] >= rows[stage].get(name, row)["at"]:
                        rows[stage][name] = row
    tests = Path(to).with_suffix(f".test{Path(to).suffix}")
    for path, made in ((Path(to), rows["label"]), (tests, rows["evaluate"])):
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.values()))
    say(f"{len(rows['label'])} corrected labels of {len(folders)} runs are in {to}: teacher.review=file:{to}")
    say(f"{len(rows['evaluate'])} corrected answers to test rows are in {tests}: for the file of your test rows")
    if not any(rows.values()):
        say("in MLflow, open a trace of the run and add an expectation named expected_response, with the right answer")
    return errors.OK
