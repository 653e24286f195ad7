"""Files of rows become Examples: the layout found is said aloud, and a row that cannot be read is set aside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.data.containers import UnreadableError, read_rows
from workbench.data.layouts import Ids, choose_layout, example_of, with_blanks, without_blank
from workbench.privacy.secrets import masked
from workbench.recipe import Data
from workbench.records import Example

RAW_CHARACTERS = 500


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: where it starts (`file:line`), why not, and its first 500 characters."""

    where: str
    reason: str
    raw: str


@dataclass(frozen=True)
class Loaded:
    """What a file held: its examples, its bad rows, the layout it was read as, and what a user should hear."""

    examples: list[Example]
    bad: list[BadRow]
    format: str
    said: list[str]


def load(path: Path, data: Data, *, part: str = "train", unanswered: bool = False) -> Loaded:
    """Read a local file, or a folder of files or of a saved `datasets` data set, as `data` lays it out.

    A folder that holds several splits gives the one called `part`. The line of a row is where it starts in
    the file, counted from 1; Parquet and `datasets` rows are counted from 1. With `unanswered`, a row without an
    answer gets the empty one: a teacher will be asked. Raises RequestError when the
    file, the layout or a mapped column is not there; a bad row never raises.
    """
    said: list[str] = []
    raws = list(read_rows(path, part, said))
    rows = [raw.row for raw in raws if raw.row is not None]
    if unanswered:
        data = with_blanks(rows, data)
    layout = data.format if raws and not rows else choose_layout(rows, data, path.name)
    examples, bad, ids = [], [], Ids()
    for raw in raws:
        try:
            if raw.row is None:
                raise UnreadableError(raw.reason)
            example = example_of(raw.row, raw.where, layout, data, ids)
            examples.append(without_blank(example) if unanswered else example)
        except UnreadableError as error:
            shown = raw.text or json.dumps(raw.row, ensure_ascii=False, default=str)
            shown = masked(shown.encode("utf-8", "backslashreplace").decode())[:RAW_CHARACTERS]
            bad.append(BadRow(raw.where, str(error), shown))
    said.insert(0, f"{len(examples):,} rows as {layout} from {path.name}")
    if bad:
        said.append(f"{len(bad):,} rows of {path.name} set aside; the first: {bad[0].where}: {bad[0].reason}")
    if ids.made:
        said.append(f"{ids.made:,} rows of {path.name} have no id: a digest of the prompt stands in")
    if ids.secret:
        said.append(f"{ids.secret:,} ids of {path.name} are keys or hold a password: digests stand in")
    if ids.repeats:
        said.append(f"{ids.repeats:,} ids of {path.name} were taken already: -2, -3, … was added to each repeat")
    return Loaded(examples, bad, layout, said)


def write_quarantine(bad: Sequence[BadRow], path: Path) -> None:
    """Write bad rows as JSON lines `{"where", "reason", "raw"}`; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"where": b.where, "reason": b.reason, "raw": b.raw}, ensure_ascii=False) for b in bad)
    draft = path.with_name(path.name + ".part")
    draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    draft.replace(path)
