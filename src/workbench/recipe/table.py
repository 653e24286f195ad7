"""The reference tables of every recipe key, made from the schema.

`python -m workbench.recipe.table` prints them all, `… table model gate` those of some sections, and
`… table --write` puts each where its markers stand in `configs/**/README.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import typing
from pathlib import Path
from typing import Any

from workbench.recipe.schema import Quantize, Recipe

TOP = "recipe"  # what the keys that stand in no section are called here
MARKED = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- /keys -->)", re.S)


def markdown(*names: str) -> str:
    """The tables of the named sections, or of all: key, type, default, meaning with unit and limits."""
    tables = sections()
    return "\n\n".join(tables[name] for name in names or tables) + "\n"


@functools.cache
def sections() -> dict[str, str]:
    """One Markdown table a section of the recipe, by its name; `recipe` has the keys that stand in no section."""
    top = [spec for spec in dataclasses.fields(Recipe) if not holds_keys(Recipe, spec)]
    tables = {TOP: section("what is said once for the whole recipe", Recipe, top, "")}
    for spec in dataclasses.fields(Recipe):
        if holds_keys(Recipe, spec):
            cls = Quantize if spec.name == "quantize" else typing.get_type_hints(Recipe)[spec.name]
            prefix = "quantize.<name>." if spec.name == "quantize" else f"{spec.name}."
            tables[spec.name] = section(first_line(cls), cls, list(dataclasses.fields(cls)), prefix)
    return tables


def with_tables(text: str) -> str:
    """A document with the table between each `<!-- keys: NAME -->` and `<!-- /keys -->` made anew."""
    tables = sections()
    return MARKED.sub(lambda mark: f"{mark[1]}{tables[mark[2]]}\n{mark[3]}", text)


def write(folder: Path) -> None:
    """Make the tables of every README under `folder` anew."""
    for path in sorted(folder.rglob("README.md")):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


def holds_keys(cls: type, spec: dataclasses.Field[Any]) -> bool:
    """Whether a field is a section of its own."""
    kind = typing.get_type_hints(cls)[spec.name]
    return dataclasses.is_dataclass(kind) or spec.name == "quantize"


def first_line(cls: type) -> str:
    """A dataclass's docstring, without its full stop."""
    return (cls.__doc__ or "").strip().split("\n")[0].rstrip(".")


def section(meaning: str, cls: type, specs: list[dataclasses.Field[Any]], prefix: str) -> str:
    """One section's meaning and table; a nested section's keys follow with their path."""
    lines = [
        f"{meaning[:1].upper()}{meaning[1:]}.",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join(lines + list(table_rows(cls, specs, prefix)))


def table_rows(cls: type, specs: list[dataclasses.Field[Any]], prefix: str) -> typing.Iterator[str]:
    """The rows of one dataclass."""
    kinds = typing.get_type_hints(cls)
    for spec in specs:
        kind = kinds[spec.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from table_rows(kind, list(dataclasses.fields(kind)), f"{prefix}{spec.name}.")
            continue
        name = type_name(kind)
        default = getattr(cls(), spec.name)
        yield f"| `{prefix}{spec.name}` | {escaped(name)} | {shown(default)} | {escaped(described(spec.metadata))} |"


def type_name(kind: object) -> str:
    """A field's type as it is written."""
    return str(kind) if typing.get_args(kind) else getattr(kind, "__name__", str(kind))


def shown(default: object) -> str:
    """A default as YAML would say it."""
    if default is None:
        return "null"
    if default == "" or default == [] or default == {}:
        return "—"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def described(metadata: typing.Mapping[str, Any]) -> str:
    """Meaning, unit, choices and limits in one cell."""
    text = metadata["meaning"] + (f" ({metadata['unit']})" if metadata["unit"] else "")
    if metadata["choices"]:
        text += ": " + ", ".join(metadata["choices"])
    limits = [f"{word} {metadata[key]:g}" for key, word in (("above", ">"), ("at_least", "≥"), ("at_most", "≤"))
              if metadata[key] is not None]  # fmt: skip
    return text + (f"; {', '.join(limits)}" if limits else "")


def escaped(text: str | None) -> str:
    """Safe inside a Markdown cell."""
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write(Path("configs"))
    else:
        sys.stdout.write(markdown(*sys.argv[1:]))
