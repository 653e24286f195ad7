"""No sign that a terminal obeys reaches it from a row, a column's or file's name, an answer, or a template's words."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.engines.served import Served
from workbench.records import Message
from workbench.screen import SafeConsole, json_line, visible
from workbench.sources import weights
from workbench.views.serve import curl_line

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


# Children speak to their parents, which show it as any other text; the last is a page for another program.
SCRIPTS = (
    "table_trial", "template_trial", "tokenizer_trial", "pip_download", "hub_download", "feeding", "lm_eval_utils",
)  # fmt: skip
MADE_VISIBLE = ("masked", "visible", "json_line", "curl_line", "usage", "completion", "__version__")


def is_shown_as_text(shown: ast.expr) -> bool:
    """Whether what is printed is our own words and figures, or what has made signs visible has made it."""
    if isinstance(shown, ast.JoinedStr):  # a text takes no format
        return all(isinstance(part, ast.Constant) or part.format_spec for part in shown.values)  # type: ignore[attr-defined]
    function = shown.func if isinstance(shown, ast.Call) else shown
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return isinstance(shown, ast.Constant) or name in MADE_VISIBLE


def test_nothing_is_printed_past_the_console_that_could_hold_a_sign() -> None:
    bare = []
    for path in (path for path in ROOT.rglob("*.py") if path.stem not in SCRIPTS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if is_print and not is_shown_as_text(node.args[0]):
                bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


def test_the_line_that_serve_gives_for_a_shell_moves_no_cursor_and_asks_the_same() -> None:
    server = Served("llama.cpp", "http://127.0.0.1:1", "m", lambda: "", 1)
    line = curl_line(server, (Message("user", f"{SIGNS} who's there?"),))
    assert OBEYED.findall(line) == []
    assert json.loads(shlex.split(line)[-1])["messages"][0]["content"] == f"{SIGNS} who's there?"


@pytest.mark.parametrize("sign", ["\x9b2J", "\u202e", "\x1b[2J"])
def test_a_models_file_whose_name_has_signs_moves_no_cursor(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def write_plain(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "write_plain", write_plain)
    monkeypatch.setattr(weights, "refuse_broken", lambda path: None)  # these bytes stand for a GGUF file
    (tmp_path / f"m{sign}.gguf").write_bytes(b"weights")
    folder = weights.model_folder(f"file:{tmp_path}/m{sign}.gguf")
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    weights.model_folder(f"file:{tmp_path}/m{sign}.gguf")
    shown = capfd.readouterr().err
    assert "unpacking m" in shown
    assert "has changed since it was made" in shown
    assert OBEYED.findall(shown) == []


def test_every_console_of_the_package_is_the_one_that_shows_signs_as_numbers() -> None:
    made = [p.name for p in ROOT.rglob("*.py") if re.search(r"(?<!Safe)\bConsole\(", p.read_text(encoding="utf-8"))]
    assert made == []
