"""Progress: a line now and then where there is no terminal, and the last one always."""

from __future__ import annotations

import re

import pytest

from workbench import progress_bar as module
from workbench.progress_bar import progress, time_left


def test_without_a_terminal_a_line_a_minute_and_the_last_is_written_with_time_left_and_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 20))  # seconds: 20 between two rows
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    asked = []
    with progress("label", 1006, done=1000, facts=lambda: asked.append(1) or "3 kept") as move:
        for done in range(1001, 1007):
            move(done)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"[\d.]+ [kMGT]?B memory$", "N memory", line) for line in lines] == [
        "  label · 1,003 of 1,006 · 3 kept · 60 s left · N memory",
        "  label · 1,006 of 1,006 · 3 kept · 0 s left · N memory",
    ]
    assert len(asked) == 2, "what is not shown is not asked"


def test_time_left_is_told_by_whole_batches_and_not_by_the_first_answer_of_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("base", 240) as move:
        for done in range(1, 241):  # sixty answers at once, each minute
            now[0] = 61.0 * (1 + (done - 1) // 60)
            move(done)
    lines = [line.rpartition(" · ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "  base · 1 of 240 · time left not known yet",
        "  base · 61 of 240 · 3 min left",
        "  base · 121 of 240 · 2 min left",
        "  base · 181 of 240 · 60 s left",
        "  base · 240 of 240 · 0 s left",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(12, "12 s left"), (240, "4 min left"), (9000, "2.5 h left")])
def test_time_left_is_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert time_left(seconds) == words


def test_bytes_are_told_in_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sending", 2_500_000, size=True) as move:
        move(2_500_000)
    assert "  sending · 2.5 MB of 2.5 MB · 0 s left" in capsys.readouterr().err
