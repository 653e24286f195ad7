"""What a teacher's or a base's licence asks of every model that came from it, kept beside the files it goes with.

Duties are inherited: a student's students keep them, and so do its quantized copies and its bundle. They travel
as `duties.json` in a stage's folder, and as tags in the registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from workbench.errors import WorkbenchError
from workbench.files import write_whole

Kind = Literal["name_prefix", "notice", "pass_on", "threshold"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILE = "duties.json"
LONGEST_TAG = 5_000  # characters in an MLflow tag's value


@dataclass(frozen=True)
class Duty:
    """One thing to do: what kind, its text (of a `name_prefix`, the prefix itself), and the licence it comes from."""

    kind: Kind
    text: str
    origin: str


def joined(*groups: Iterable[Duty]) -> tuple[Duty, ...]:
    """All duties of all groups, each once, in the order they were first met."""
    return tuple(dict.fromkeys(duty for group in groups for duty in group))


def write_duties(folder: Path, duties: Sequence[Duty]) -> None:
    """Write `duties.json` into a folder, sorted and without repeats; nothing is written when there are none."""
    if not duties:
        return
    rows = sorted((asdict(duty) for duty in joined(duties)), key=lambda row: (row["kind"], row["origin"], row["text"]))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps({"duties": rows}, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_duties(folder: Path) -> tuple[Duty, ...]:
    """The duties beside a folder's files; empty when it has no `duties.json`.

    Raises WorkbenchError when there is one that cannot be read: a duty must not get lost in silence.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise broken(path, str(error)) from None
    rows = content.get("duties") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise broken(path, "it is no object with a list of duties")
    return joined(duty_of(row, path) for row in rows)


def duty_of(row: Any, path: Path) -> Duty:
    """A Duty from its JSON object; raises WorkbenchError when a field is missing, strange, empty or no text."""
    names = {spec.name for spec in fields(Duty)}
    if not isinstance(row, dict) or set(row) != names:
        raise broken(path, f"a duty has the fields {', '.join(sorted(names))}, this is {row!r}")
    if not all(isinstance(value, str) and value.strip() for value in row.values()) or row["kind"] not in KINDS:
        raise broken(path, f"a duty is one of {', '.join(KINDS)} with a text and an origin, this is {row!r}")
    return Duty(row["kind"], row["text"], row["origin"])


def broken(path: Path, why: str) -> WorkbenchError:
    """The error for a `duties.json` that cannot be trusted."""
    return WorkbenchError(
        f"the duties that go with this model cannot be read: {why}",
        where=str(path),
        remedy="run the stage that wrote it again; deleting the file does not end a duty",
    )


def as_tags(duties: Sequence[Duty]) -> dict[str, str]:
    """Flat tags `duty.1`, `duty.2`, … for the registry, in the order given, each value short enough for MLflow."""
    values = (f"{duty.kind}: {duty.text} ({duty.origin})" for duty in joined(duties))
    return {
        f"duty.{i}": value if len(value) <= LONGEST_TAG else value[: LONGEST_TAG - 1] + "…"
        for i, value in enumerate(values, start=1)
    }


def name_ok(name: str, duties: Sequence[Duty]) -> str | None:
    """What is wrong with the name of a model that is handed out, or None; ask only where it is handed out.

    The part after the last `/` must begin with the prefix, in its own capitals; spaces, `-`, `_` and `.` are alike.
    """

    def plain(text: str) -> str:
        return re.sub(r"[\s._-]+", " ", text).strip()

    own = name.rsplit("/", 1)[-1]
    for duty in duties:
        if duty.kind != "name_prefix" or plain(own).startswith(plain(duty.text)):
            continue
        first = plain(duty.text).split(" ")[0]
        rest = own[len(first) :].lstrip("-_. ") if own.lower().startswith(first.lower()) else own
        better = name[: len(name) - len(own)] + duty.text.replace(" ", "-") + (f"-{rest}" if rest else "")
        return f"{name!r} must begin with {duty.text!r} ({duty.origin}); for example {better!r}"
    return None
