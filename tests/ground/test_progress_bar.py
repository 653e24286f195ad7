"""Progress: a line now and then where there is no terminal, and the last one always."""

from __future__ import annotations

import pytest

from workbench import progress_bar as module
from workbench.progress_bar import progress


def test_without_a_terminal_nothing_but_lines_far_apart_and_the_last_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 20))  # seconds: 20 between two rows
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    asked = []
    with progress("label", 1006, done=1000, facts=lambda: asked.append(1) or "3 kept") as move:
        for done in range(1001, 1007):
            move(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  label · 1,002 of 1,006 · 3 kept · 80 s left",
        "  label · 1,004 of 1,006 · 3 kept · 40 s left",
        "  label · 1,006 of 1,006 · 3 kept · 0 s left",
    ]
    assert len(asked) == 3, "what is not shown is not asked"


def test_bytes_are_told_in_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sending", 2_500_000, size=True) as move:
        move(2_500_000)
    assert "  sending · 2.5 MB of 2.5 MB · 0 s left" in capsys.readouterr().err
