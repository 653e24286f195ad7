"""No sign that a terminal obeys reaches it from a row, a column's or file's name, an answer, or a template's words."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.screen import SafeConsole, json_line, visible

# Clears the screen, sets the title, writes over the line, C1's own introducer, turns the reading order, a bell.
SIGNS = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\x08"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ROOT = Path(__file__).parents[2] / "src" / "workbench"


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        {
            "question": f"{SIGNS}Which colour has {n}x{n * 7 % 13}?",
            "answer": f"red{SIGNS}",
            "id": f"r{n}{SIGNS}",
            f"c{SIGNS}": 1,
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + f"{{broken{SIGNS}\n")
    (tmp_path / "mine.yaml").write_text(
        "defaults: [workbench, {evaluate: exact_match}, _self_]\n"
        f'model: {{source: "dir:{tiny_model}", licence: Apache-2.0}}\n'
        'data: {train: "file:rows.jsonl", columns: {prompt: question, answer: answer}, privacy: public, '
        "max_bad_share: 0.1}\nevaluate: {general: null, harmful: null}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [["plan"], ["preview"], ["preview", "output=json"], ["plan", "output=json"]])
def test_what_a_view_shows_of_rows_moves_no_cursor(
    command: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], "recipe=./mine.yaml", *command[1:]]) == 0
    shown = capsys.readouterr()
    assert OBEYED.findall(shown.out + shown.err) == []
    if command[0] == "preview":
        assert "Which colour has" in shown.out


def test_an_error_that_repeats_a_row_moves_no_cursor(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe=./mine.yaml", "data.max_bad_share=0", "data.columns.prompt=no"]) == 2
    assert OBEYED.findall(capsys.readouterr().err) == []


def test_a_console_writes_its_own_colours_and_no_sign_of_its_texts() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=True, color_system="truecolor", markup=False)
    console.print(f"answer {SIGNS}", style="bold red")
    colours = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    assert stream.getvalue() != colours
    assert OBEYED.findall(colours) == []
    assert "answer \\x1b[2J" in colours


def test_json_for_a_program_is_the_same_value() -> None:
    line = json_line({"text": SIGNS + "ä中"})
    assert json.loads(line) == {"text": SIGNS + "ä中"}
    assert OBEYED.findall(line) == []
    assert visible("tab\there\nnext ä中") == "tab\there\nnext ä中"


def test_every_console_of_the_package_is_the_one_that_shows_signs_as_numbers() -> None:
    made = [p.name for p in ROOT.rglob("*.py") if re.search(r"(?<!Safe)\bConsole\(", p.read_text(encoding="utf-8"))]
    assert made == []
