"""How a view speaks: tables for a person, or one JSON object for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(title: str, sections: Mapping[str, Mapping[str, Any]], output: str) -> None:
    """Print named sections of key and value; with `output=json` as one object and nothing else."""
    if output == "json":
        print(json.dumps(sections, ensure_ascii=False, indent=1, default=str))
        return
    console = Console(highlight=False, markup=False)  # a value in square brackets is no style
    table = Table(title=title, show_header=False, box=None, pad_edge=False, title_justify="left")
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, section in sections.items():
        for number, (key, value) in enumerate(section.items()):
            table.add_row(name if number == 0 else "", key, plain(value))
    console.print(table)


def plain(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "\n".join(map(plain, value)) or "none"
    return "—" if value is None else str(value)


def megabytes(count: float) -> str:
    """Bytes as MB or GB, powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
