"""One tiny life: what it prints next can be typed as it stands, and its figures are those of its own answers."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle_project import new_project
from page_reader import Page
from tiny_gguf import write_tiny_gguf
from workbench.__main__ import main
from workbench.runs import Run, stage

# Typed on purpose: a recipe by its path, a folder of runs elsewhere, a value of its own, and a name with blanks.
TYPED = ["./mine.yaml", "launch.experiments=my runs", 'data.system="Say one word, please."']


@dataclass(frozen=True)
class Life:
    """A project whose life has been run, and what it printed."""

    folder: Path
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The one run's folder."""
        (path,) = self.folder.glob("my runs/mine/*/run.json")
        return path.parent


def typed_in(folder: Path, *words: str, stdin: str = "") -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command line in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(stdin))
        patch.setattr("workbench.stages.lifecycle.SCREEN._file", err)  # the property gives a stream, not None
        with contextlib.redirect_stderr(err):
            code = main(list(words))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def life(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A whole life on a random model, with validation looks; its gate lets anything ship."""
    folder = new_project(tmp_path_factory.mktemp("life"), tiny_model)
    recipe = (folder / "mine.yaml").read_text().replace("evaluations: 1", "evaluations: 3")
    (folder / "mine.yaml").write_text(recipe)
    code, out, err = typed_in(folder, "train", *TYPED)
    assert code == 0, err
    return Life(folder, out, err)


def commands_in(text: str) -> Iterator[list[str]]:
    """Every command that a text prints, as the words after `python -m workbench`."""
    for line in re.findall(r"python -m workbench .*", text):
        yield shlex.split(line, comments=True)[3:]


@pytest.mark.slow
def test_every_next_command_runs_as_printed(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.views.ui.serve_ui", lambda *_: 0)  # it would wait for Ctrl-C
    printed = list(commands_in(life.out))
    assert {words[0] for words in printed} == {"chat", "ui", "export"}
    for words in printed:
        code, out, err = typed_in(life.folder, *words, stdin="hello\n")
        assert code == 0, (words, err)
        if words[0] == "chat":
            assert out.strip()
    assert (life.folder / "exported" / "mine" / "MANIFEST.json").is_file()


@pytest.mark.slow
def test_a_registered_student_is_talked_to_by_its_alias_and_an_arm_by_its_name(life: Life) -> None:
    words = ["chat", "model=models:/mine@champion", "experiments=my runs", "max_new_tokens=3"]
    code, out, err = typed_in(life.folder, *words, stdin="hello\n")
    assert code == 0, err
    assert out.strip()
    assert "proven, signed" in err
    code, _, err = typed_in(life.folder, *words, "arm=gguf_q8_0", stdin="hello\n")
    assert (code, "a bundle is one arm" in err) == (2, True)
    for arm, told in (("gguf_q9", "the recipe has no arm 'gguf_q9'"), ("gguf_q8_0", "gguf_q8_0 is not made yet")):
        code, _, err = typed_in(life.folder, "chat", *TYPED, "quantize=[gguf_q8_0]", f"arm={arm}", stdin="hello\n")
        assert code == 2, err
        assert told in err


@pytest.mark.slow
def test_a_made_format_is_talked_to_in_the_engine_that_serves_it(life: Life, tmp_path: Path) -> None:
    made = Life(Path(shutil.copytree(life.folder, tmp_path / "made")), "", "")
    name, digest = made.run.parts[-2:]
    with stage(Run(made.run, name, digest), "quantize/gguf_f16", "as converted") as staging:
        write_tiny_gguf(made.run / "merge" / "model", staging.folder / "mine.gguf")
    words = ["chat", *TYPED, "quantize=[gguf_f16]", "arm=gguf_f16", "max_new_tokens=4", "output=json"]
    code, out, err = typed_in(made.folder, *words, stdin="hello\n/new\nhello\n")
    assert code == 0, err
    first, again = map(json.loads, out.splitlines())
    assert first["who"] == "gguf_f16"
    assert first["tokens"] > 0
    assert first["answer"] == again["answer"], "greedy, and begun anew"
    assert "gguf_f16: not proven (it was made after the verdict)" in err


@pytest.mark.slow
def test_what_production_is_asked_lies_where_the_runs_do(life: Life) -> None:
    words = ["model=models:/mine@champion", "data=mine.csv", "experiments=my runs"]
    code, _, err = typed_in(life.folder, "evaluate", *words)
    assert code in (0, 3), err
    assert list((life.folder / "my runs").glob("rechecks/*/*/report.json"))
    assert not (life.folder / "experiments").exists()


@pytest.mark.slow
def test_a_command_that_ends_early_prints_the_one_that_goes_on_and_one_to_talk(life: Life, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(life.folder, tmp_path / "again"))
    code, out, _ = typed_in(folder, "train", *TYPED, "until=train", "method.rank=4")
    assert code == 0
    (on, chat) = commands_in(out)
    assert on == ["train", "recipe=./mine.yaml", *TYPED[1:], "method.rank=4"]
    assert "# goes on with merge" in out
    code, out, err = typed_in(folder, *chat, stdin="hello\nand again\n")
    assert code == 0, err
    assert "not proven" in err
    assert len(re.findall("^base: ", out, re.M)) == len(re.findall("^student: ", out, re.M)) == 2


@pytest.mark.slow
def test_what_is_needed_first_is_named_by_a_command_that_makes_it(life: Life, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(life.folder, tmp_path / "needs"))
    code, _, err = typed_in(folder, "merge", *TYPED, "method.rank=2")
    assert code == 1
    (words,) = commands_in(err)
    assert typed_in(folder, *words)[0] == 0
    assert typed_in(folder, "merge", *TYPED, "method.rank=2")[0] == 0


@pytest.mark.slow
def test_the_page_shows_a_dot_for_every_look_at_the_validation_loss(life: Life) -> None:
    events = [json.loads(line) for line in (life.run / "events.jsonl").read_text().splitlines()]
    looks = [e["value"] for e in events if e.get("name") == "validation/loss"]
    assert len(looks) == 3
    page = (life.run / "evaluate" / "report.html").read_text()
    curve = re.search(r'<svg class="curve".*?<title>loss by training step.*?</svg>.*?</svg>', page, re.S)
    assert curve
    assert curve[0].count("<circle") == len(looks)


@pytest.mark.slow
def test_page_card_and_screen_say_what_the_answers_themselves_say(life: Life) -> None:
    rows = [json.loads(line) for line in (life.run / "evaluate/predictions/student.jsonl").read_text().splitlines()]
    right = sum(row["answer"].strip() == row["expected"].strip() for row in rows) / len(rows)
    shown = f"{100 * right:.1f} %"
    report = json.loads((life.run / "evaluate" / "report.json").read_text())
    assert report["arms"]["student"]["exact_match"]["value"] == pytest.approx(right)
    page = Page((life.run / "evaluate" / "report.html").read_text())
    quoted = {text.replace("\u00a0", " ") for place, _, _, text in page.quoted
              if place == "/arms/student/exact_match/value"}  # fmt: skip
    assert quoted == {shown}
    assert re.search(rf"^student +{re.escape(shown)}", life.out, re.M)
    card = (life.run / "bundle" / "student" / "README.md").read_text()
    assert re.search(rf"\*\*student\*\* \(this one\).*{re.escape(shown)}", card)
    # A batch's wall time is nobody's wait, wherever it is shown; the work of all answers fits into the stage.
    stage = json.loads((life.run / "run.json").read_text())["stages"]["evaluate"]["seconds"]
    assert sum(row["seconds"] for row in rows) < stage
    for text in (page_text := (life.run / "evaluate" / "report.html").read_text(), card, life.out):
        assert "one asker" not in text
        assert "latency" not in text.lower().replace("latency: ", "")
    assert "seconds / batch p95" in page_text


@pytest.mark.slow
def test_a_card_names_a_base_of_the_hub_or_none(life: Life) -> None:
    front = (life.run / "bundle" / "student" / "README.md").read_text().split("---")[1]
    assert "base_model" not in front, "a folder on this machine is no model of the hub"


@pytest.mark.slow
def test_results_go_to_standard_output_and_progress_to_standard_error(life: Life) -> None:
    assert "test rows, 95 % intervals" in life.out
    assert "next:" in life.out
    for word in ("took", "validation loss", "train: 50 rows as columns"):
        assert word in life.err, word
        assert word not in life.out
    assert "  no format is wanted" in life.err
    code, again, err = typed_in(life.folder, "train", *TYPED)
    assert (code, again) == (0, life.out)
    assert err.count("done already") == 5
    assert "no format is wanted" in err


@pytest.mark.slow
def test_the_result_as_json_is_one_line_whose_numbers_have_units(life: Life) -> None:
    code, out, _ = typed_in(life.folder, "train", *TYPED, "output=json")
    assert code == 0
    (line,) = out.splitlines()
    result = json.loads(line)
    assert result["gate"]["passed"] is True
    assert result["arms"]["student"]["exact_match_share"]["value"] is not None
    assert {"seconds_per_answer", "bytes"} <= set(result["arms"]["student"])
    assert result["stages"]["train"]["seconds"] > 0
    assert all(words for words in map(shlex.split, result["next"]))


@pytest.mark.slow
def test_a_run_that_the_gate_refuses_prints_what_it_learned_beside_the_base_and_names_the_checks(
    life: Life, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(life.folder, tmp_path / "refused"))
    code, out, err = typed_in(folder, "train", *TYPED, "gate.better_by=0.5", "until=evaluate")
    assert code == 3
    assert "error: gate: the gate said no (better_than_baseline): nothing was promoted" in err
    assert "what it learned: validation loss" in out
    for name in ("asked", "wanted", "base", "student"):
        assert len(re.findall(rf"^  {name} ", out, re.M)) >= 3, name
    (chat, *_) = commands_in(out)
    assert chat[0] == "chat"
    code, _, err = typed_in(folder, *chat, stdin="hello\n")
    assert code == 0
    assert "not proven: the gate refused it" in err
    code, _, err = typed_in(folder, "train", *TYPED, "gate.better_by=0.5", "until=bundle")
    assert code == 3
    assert "the gate lets nothing ship" in err
    assert not re.search(r"nothing is bundled\s+done already", err)


@pytest.mark.slow
def test_a_refusal_for_too_few_rows_offers_folds_with_their_minutes_where_siblings_can_judge(
    life: Life, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(life.folder, tmp_path / "few"))
    code, out, err = typed_in(folder, "evaluate", *TYPED, "gate.min_rows=40")
    assert code == 3, err
    assert re.search(r"evaluate\.folds=5   # about 48 rows judge; 5 trainings more, about \d+ minutes", out)
    (folds, chat, *_) = commands_in(out)
    assert chat[0] == "chat"
    code, shown, err = typed_in(folder, "plan", *folds[1:])
    assert code == 0, err
    assert "5 trainings more" in " ".join(shown.split())
    for words in (["gate.min_rows=49"], ["gate.min_rows=40", "evaluate.limit=8"]):
        code, out, err = typed_in(folder, "evaluate", *TYPED, *words)
        assert code == 3, err
        assert "folds" not in out, "they would not be enough either"
