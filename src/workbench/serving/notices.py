"""NOTICE: whose work a bundle rests on, under which licence, and what is owed for it; with copies of their notices."""

from __future__ import annotations

import shutil
from pathlib import Path

from workbench.serving.about import NOT_STATED, About

NOTICE = "NOTICE"
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")  # how files with a licence's text begin
FROM_BASE = "base-"


def write_notices(folder: Path, about: About, base_dir: Path | None = None) -> list[str]:
    """Write NOTICE, and copy the base model's licence and notice files as `base-…`; returns the names written.

    A copied file keeps its text; no licence text is written that was not there.
    """
    copied = []
    for path in sorted(base_dir.iterdir()) if base_dir else []:
        if path.name.upper().startswith(LEGAL) and path.is_file() and path.suffix.lower() in ("", ".txt", ".md"):
            shutil.copyfile(path, folder / f"{FROM_BASE}{path.name}")
            copied.append(f"{FROM_BASE}{path.name}")
    (folder / NOTICE).write_text(notice(about, copied), encoding="utf-8")
    return [NOTICE, *copied]


def notice(about: About, copied: list[str]) -> str:
    """The text of NOTICE."""
    base = about.base
    lines = [
        f"{about.name} ({about.format})",
        "",
        "Base model",
        f"  This model is a changed copy of {base.name or base.source}: its weights were fine-tuned"
        + (" and compressed." if about.kind == "quantized" else "."),
        f"  Source: {base.source or NOT_STATED}",
        f"  Licence: {base.licence or f'{NOT_STATED} (model.licence)'}",
        f"  Read at: {base.licence_url or f'{NOT_STATED} (model.licence_url)'}",
    ]
    lines += [f"  Its own files: {', '.join(copied)}"] if copied else []
    for rows in dict.fromkeys((d.name, d.source, d.licence, d.attribution) for d in about.data):
        name, source, licence, attribution = rows
        lines += ["", f"Data: {name}", f"  Source: {source or NOT_STATED}"]
        lines += [f"  Licence: {licence or f'{NOT_STATED} (data.licence)'}"]
        lines += [f"  Attribution: {attribution}"] if attribution else []
    if about.teacher:
        teacher = about.teacher
        lines += ["", f"Teacher: {teacher.name or teacher.model}", f"  Model: {teacher.model}"]
        lines += [f"  Terms: {teacher.terms or f'{NOT_STATED} (teacher.route)'}"]
        lines += [f"  Read at: {teacher.terms_url}"] if teacher.terms_url else []
    if about.duties:
        lines += ["", "Whoever hands this model on owes:"]
        lines += [f"  - [{duty.kind}] {duty.text} ({duty.origin})" for duty in about.duties]
    return "\n".join(lines) + "\n"
