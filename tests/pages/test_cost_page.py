"""The page of a cost: in a real browser it stays within its screen, and no two boxes lie on each other."""

from __future__ import annotations

import re
from datetime import date
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import screenshots
from workbench.compose import checked, find_recipe
from workbench.deciding.costing import costed
from workbench.deciding.inputs import NUMBERS, exactly, inputs_of
from workbench.pages import cost_words as words
from workbench.pages.cost_page import write_cost_page

OVERLAPS = """(() => {
  const seen = (e) => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
  const of = (s) => [...document.querySelectorAll(s)].filter(seen);
  const groups = ['text', '.panel', '.dotname, .figure, .tag', 'h2, p, .panel', 'td, th'];
  const hits = [];
  for (const group of groups) {
    const all = of(group);
    for (let i = 0; i < all.length; i++) for (let j = i + 1; j < all.length; j++) {
      const [a, b] = [all[i], all[j]];
      if (a.contains(b) || b.contains(a)) continue;
      const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
      const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (w > 1.5 && h > 1.5) hits.push(`${a.textContent.trim().slice(0, 40)} | ${b.textContent.trim().slice(0, 40)}`);
    }
  }
  return hits;
})()"""


@cache
def result(*words: str) -> dict[str, Any]:
    """The costs of a shipped recipe before any run, at fixed prices."""
    cost = checked(find_recipe("legal_distil_openai"), list(words)).cost
    prices = {"input_mtok": 0.75, "cached_mtok": 0.075, "output_mtok": 4.5}
    known = {name: exactly(value, "a price list", "2026-11-10", "table") for name, value in prices.items()}
    about = {"recipe": "legal_distil_openai", "run": None, "bundles": {}, "made": "2026-11-28T08:00:00+00:00"}
    return about | costed(cost, inputs_of(cost, known), 17, date(2026, 11, 28))


def test_equal_input_gives_equal_bytes_and_nothing_is_run_or_fetched(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_cost_page(result(), tmp_path / name)
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert "default-src 'none'" in page


def test_a_rule_of_thumb_stands_on_its_page_with_what_was_found(tmp_path: Path) -> None:
    write_cost_page(result("cost=seed_parity_5m"), tmp_path / "cost.html")
    page = (tmp_path / "cost.html").read_text()
    assert "182.5 to 365 USD a million tokens" in page
    assert "does not hold" in page


def test_every_input_stands_on_the_page_in_words_and_with_its_unit(tmp_path: Path) -> None:
    assert set(words.INPUTS) == set(NUMBERS)
    whole = result()
    assert all(each["unit"] for each in whole["inputs"])
    write_cost_page(whole, tmp_path / "cost.html")
    page = unescape((tmp_path / "cost.html").read_text())
    for each in whole["inputs"]:
        assert f"{words.INPUTS[each['name']]}</span><small><code>{each['name']}" in page
    for name, ends in (("escalated", "10 % to 60 %"), ("engineers", "0.1 to 0.5 full-time people"),
                       ("retry_factor", "1 to 1.1 times")):  # fmt: skip
        assert words.between(next(each for each in whole["inputs"] if each["name"] == name)) == ends
    widest = whole["tornado"][0]["name"]
    assert f'<span class="swingname">{words.INPUTS[widest]}<small>' in page


def test_the_strip_is_coloured_from_end_to_end_by_the_way_of_each_interval(tmp_path: Path) -> None:
    whole = result()
    write_cost_page(whole, tmp_path / "cost.html")
    strip = re.search(r'<svg class="strip".*?</svg>', (tmp_path / "cost.html").read_text())[0]
    rects = [(c, float(x), float(w)) for c, x, w in re.findall(r'class="(\w+)" x="([\d.]+)%" width="([\d.]+)%"', strip)]
    hues = {"api": "base", "self": "student", "hybrid": "format"}
    assert [hue for hue, *_ in rects] == [hues[piece["cheapest"]] for piece in whole["intervals"]]
    assert rects[0][1] == 0
    assert rects[-1][1] + rects[-1][2] == pytest.approx(100, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_real_browser_shows_it_without_an_error_a_request_a_sideways_scroll_or_an_overlap(
    browser: screenshots.Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    write_cost_page(result("cost=seed_home_80" if dark else "cost.requests_a_month=3e6"), tmp_path / "cost.html")
    browser.events.clear()
    browser.look(width, 900, dark=dark)
    browser.go(str(tmp_path / "cost.html"), 1.0)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) is dark
    assert browser.evaluate(OVERLAPS) == []
    methods = [event.get("method") for event in browser.events]
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("file://") and url.endswith("/cost.html") for url in asked)
    assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(methods)
