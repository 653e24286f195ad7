"""The pictures: SVG files of what the report holds, the same bytes for the same report, each whole in itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from whole_report import whole_report
from workbench.pages import panels
from workbench.pages.charts import Box, places
from workbench.pages.pictures import draw

ALL = ["forest", "differences", "pareto", "slices", "calibration", "confusion"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return whole_report(("base_few_shot", "student", "gguf_q4_k_m"))[0]


def words_of(path: Path) -> list[str]:
    """The texts of a picture in order; it must be well-formed."""
    return [node.text or "" for node in ElementTree.parse(path).iter(f"{SVG}text")]


def test_every_part_of_the_report_is_a_picture(report: dict[str, Any], tmp_path: Path) -> None:
    paths = draw(report, tmp_path / "figures")
    assert [path.stem for path in paths] == ALL
    for path in paths:
        root = ElementTree.parse(path).getroot()
        assert (root.tag, path.suffix) == (f"{SVG}svg", ".svg")
        assert float(root.get("width", 0)) > 300 < float(root.get("height", 0)) or path.stem in (
            "forest",
            "differences",
        )


def test_a_report_without_parts_has_fewer_pictures_and_equal_bytes(report: dict[str, Any], tmp_path: Path) -> None:
    short = {key: value for key, value in report.items() if key not in ("slices", "calibration", "confusion")}
    short["metrics"] = {k: v for k, v in short["metrics"].items() if k in (short["primary"], "bytes")}
    short["arms"] = {arm: {report["primary"]: cells[report["primary"]]} for arm, cells in report["arms"].items()}
    first = draw(short, tmp_path / "a")
    assert [path.stem for path in first] == ["forest", "differences"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in draw(short, tmp_path / "b")]


def test_a_picture_holds_the_pages_own_drawings_and_the_reports_figures(report: dict[str, Any], tmp_path: Path) -> None:
    forest, differences, pareto, _, calibration, confusion = draw(report, tmp_path)
    drawn = panels.forests(report)[0]["rows"][1]["svg"]
    assert str(drawn)[: str(drawn).index("<title>")] in forest.read_text()
    assert str(panels.tradeoffs(report)[0]["svg"]) in pareto.read_text()
    assert str(panels.calibrations(report)[0]["svg"]) in calibration.read_text()
    value = report["arms"]["student"][report["primary"]]["value"]
    assert {"student", f"{100 * value:.1f} %"} <= set(words_of(forest))
    assert "student − base_few_shot" in words_of(differences)
    table = next(iter(report["confusion"].values()))
    counts = [str(n) for row in table["arms"]["student"] for n in row if n]
    assert [word for word in words_of(confusion) if word.isdigit()] == counts
    fills = [node.get("fill", "") for node in ElementTree.parse(confusion).iter(f"{SVG}rect") if node.get("class")]
    assert len(fills) == len(table["labels"]) ** 2
    greens = [int(fill[3:5], 16) - int(fill[1:3], 16) for fill in fills]  # how much greener than red
    assert greens[0] > 20 > greens[1], "the right answers are green, the more the darker"


def test_a_picture_fetches_nothing_and_runs_nothing(report: dict[str, Any], tmp_path: Path) -> None:
    for path in draw(report, tmp_path):
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|url\(|@import|<script|\bon\w+=|href", text)
        assert "var(" not in text, "an office program knows no variables"


def test_a_label_with_markup_or_a_control_character_is_text(report: dict[str, Any], tmp_path: Path) -> None:
    table = report["confusion"][next(iter(report["confusion"]))]
    odd = ["</text><script>x</script>", "a\x00b\ud83d", "x" * 90, *table["labels"][3:]]
    changed = report | {"confusion": {"macro_f1": table | {"labels": odd}}}
    words = words_of(next(path for path in draw(changed, tmp_path) if path.stem == "confusion"))
    assert "a\ufffdb\ufffd" in words
    assert any(word.startswith("</text><script>") for word in words)
    assert max(len(word) for word in words if word.startswith("x")) < 40


def test_a_primary_metric_that_is_no_share_has_a_forest_with_its_own_units(
    report: dict[str, Any], tmp_path: Path
) -> None:
    arms = {arm: {"bytes": {"value": 1e8 * n, "ci_low": None, "ci_high": None}} for n, arm in enumerate(report["arms"])}
    other = report | {"primary": "bytes", "arms": arms, "comparisons": [], "metrics": {"bytes": {"kind": "bytes"}}}
    forest = next(path for path in draw(other, tmp_path) if path.stem == "forest")
    assert {"100 MB", "200 MB"} <= set(words_of(forest))


def test_names_of_close_dots_do_not_lie_on_each_other() -> None:
    dots = [(f"format_{i}", 150.0 + 3 * i, 80.0 + 2 * i) for i in range(5)]
    boxes = places(dots, [], Box(0, 0, 340, 260))
    assert all(a.overlap(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
