"""The pictures: PNG files of what the report holds, the same bytes for the same report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whole_report import whole_report
from workbench.pages.charts import Box, places
from workbench.pages.plots import draw

ALL = ["forest", "differences", "pareto", "slices", "calibration", "confusion"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return whole_report(("base_few_shot", "student", "gguf_q4_k_m"))[0]


def test_every_part_of_the_report_is_a_picture(report: dict[str, Any], tmp_path: Path) -> None:
    paths = draw(report, tmp_path / "figures")
    assert [path.stem for path in paths] == ALL
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in paths)


def test_a_report_without_parts_has_fewer_pictures_and_equal_bytes(report: dict[str, Any], tmp_path: Path) -> None:
    short = {key: value for key, value in report.items() if key not in ("slices", "calibration", "confusion")}
    short["metrics"] = {k: v for k, v in short["metrics"].items() if k in (short["primary"], "bytes")}
    short["arms"] = {arm: {report["primary"]: cells[report["primary"]]} for arm, cells in report["arms"].items()}
    first = draw(short, tmp_path / "a")
    assert [path.stem for path in first] == ["forest", "differences"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in draw(short, tmp_path / "b")]


def test_names_of_close_dots_do_not_lie_on_each_other() -> None:
    dots = [(f"format_{i}", 150.0 + 3 * i, 80.0 + 2 * i) for i in range(5)]
    boxes = places(dots, [], Box(0, 0, 340, 260))
    assert all(a.overlap(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
