"""Help, lists and completion: every verb told in our words, and a shell that completes what there is."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.recipe import known_keys
from workbench.views.help import completion, keys_of, sections
from workbench.views.verbs import VERBS

RECIPE = """\
defaults: [workbench, {model: smollm2_135m}, _self_]
data: {train: "file:rows.csv"}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.mark.parametrize("asked", [["{}", "--help"], ["{}", "-h"], ["help", "{}"], ["{}", "legal_lora", "--help"]])
def test_help_of_every_verb_says_what_it_does_its_keys_two_examples_and_its_exit_codes(
    asked: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, verb in VERBS.items():
        assert main([word.format(name) for word in asked]) == 0
        shown = capfd.readouterr()
        assert shown.err == ""
        assert " ".join(verb.does.split()) in " ".join(shown.out.split())
        assert len(verb.examples) == 2
        assert all(f"workbench {example}" in shown.out for example in verb.examples)
        assert all(f"  {key} " in shown.out for key in verb.words)
        assert ("  method " in shown.out) == verb.recipe
        assert all(f"\n  {code} " in shown.out for code in (0, 1, 2, 130))
        assert ("\n  3 " in shown.out) == bool(verb.refused)
        assert "hydra" not in shown.out.lower()


def test_help_of_a_section_has_each_of_its_keys_with_its_default(capfd: pytest.CaptureFixture[str]) -> None:
    told: set[str] = set()
    for section in sections():
        assert main(["train", "--help", section]) == 0
        out = capfd.readouterr().out
        assert [key for key in keys_of(section) if f"  {key} " not in out] == []
        told |= set(keys_of(section))
    inner = {key for key in known_keys() if any(other.startswith(f"{key}.") for other in known_keys())}
    assert told == set(known_keys()) - inner - {"quantize"}
    assert main(["train", "--help", "method.learning_rate"]) == 0
    assert "0.0002" in capfd.readouterr().out


def test_eighty_columns_are_enough_for_all_help_and_no_line_is_longer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], ["chat", "--help"], ["train", "--help", "gate"], ["list", "models"]):
        assert main(words) == 0
        lines = capfd.readouterr().out.splitlines()
        assert max(len(line.rstrip()) for line in lines) <= 80, words


def test_lists_name_what_there_is_and_speak_json(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "recipes").mkdir()
    (here / "recipes" / "mine.yaml").write_text("# workbench train mine\n#\n# Sorts tickets. More.\n" + RECIPE)
    run = here / "experiments" / "mine" / "12345678"
    (run / "evaluate").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"recipe": "mine", "stages": {"train": {}, "evaluate": {}}}))
    report = {"primary": "accuracy", "arms": {"student": {"accuracy": {"value": 0.5}}}, "gate": {"passed": False}}
    (run / "evaluate" / "report.json").write_text(json.dumps(report))
    assert main(["list"]) == 0
    shown = capfd.readouterr().out
    for words in (
        "mine  ",
        "Sorts tickets.",
        "smollm2_135m",
        "openai",
        "gguf_q8_0",
        "mine/12345678",
        "refused",
        "50.0 %",
    ):
        assert words in shown, words
    assert "More." not in shown
    (here / "recipes" / "odd.yaml").write_bytes(b"# \xff")
    os.mkfifo(here / "recipes" / "pipe.yaml")
    (here / "experiments" / "mine" / "87654321").mkdir()
    (here / "experiments" / "mine" / "87654321" / "run.json").write_text('{"sta')
    assert main(["list", "output=json"]) == 0
    told = json.loads(capfd.readouterr().out)
    says = {row["name"]: row["says"] for row in told["recipes"]}
    assert says["mine"] == "Sorts tickets."
    assert says["odd"].startswith("cannot be read")
    assert {row["name"]: row["done"] for row in told["runs"]} == {
        "mine/12345678": "evaluate", "mine/87654321": "cannot be read: JSONDecodeError",
    }  # fmt: skip
    shutil.rmtree(here / "experiments" / "mine" / "87654321")
    assert main(["list", "runs", "output=json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["runs"]
    assert (row["name"], row["primary_share"], row["verdict"]) == ("mine/12345678", 0.5, "refused")


def completed(line: str, shell: str = "bash") -> list[str]:
    """What the shell would offer at the end of a line."""
    script = completion("bash", {"gate": ["default", "lean"], "model": ["qwen3_0_6b"]}, ["legal_lora", "mine"])
    probe = f"""{script}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({line} {'""' if line.endswith(" ") else ""})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _workbench; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run([shell, "-c", probe], capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("workbench tr", ["train"]),
        ("workbench plan leg", ["legal_lora"]),
        ("workbench train legal_lora method.learning", ["method.learning_rate="]),
        ("workbench train legal_lora gate=l", ["lean"]),
        ("workbench train legal_lora method.kind=q", ["qlora"]),
        ("workbench train legal_lora method.dora=t", ["true"]),
        ("workbench chat legal_lora besi", ["beside="]),
        ("workbench verify bund", ["bundle="]),
        ("workbench list mod", ["models"]),
        ("workbench completion z", ["zsh"]),
        ("workbench chat legal_lora beside=", ["base"]),
        ("workbench list output=j", ["json"]),
        ("workbench doctor j", []),
    ],
)
def test_the_shell_completes_verbs_recipes_keys_nouns_and_choices(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("workbench train leg", "workbench train legal_lora "),
        ("workbench train ./mi", "workbench train ./mine.yaml "),
        ("workbench init ro", "workbench init rows.csv "),
        ("workbench chat legal_lora beside=", "workbench chat legal_lora beside=base "),
        ("workbench train legal_lora method.kind=q", "workbench train legal_lora method.kind=qlora "),
    ],
)
def test_the_tab_key_completes_in_a_shell_that_a_person_types_in(here: Path, keys: str, line: str) -> None:
    for name in ("mine.yaml", "rows.csv"):
        (here / name).touch()
    (here / "words.sh").write_text(completion("bash", {}, ["legal_lora"]))
    person, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=terminal, stdout=terminal, stderr=terminal,
        env={"PATH": "/usr/bin:/bin", "PS1": "> ", "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    try:
        os.write(person, f". ./words.sh\n{keys}\t".encode())
        seen = b""
        while line not in seen.decode(errors="replace") and select.select([person], [], [], 20)[0]:
            seen += os.read(person, 4096)
        assert line in seen.decode(errors="replace")
    finally:
        shell.kill()
        shell.wait()
        os.close(person)
        os.close(terminal)


NAMES = (
    "x'; touch CANARY; '", "$(touch CANARY)", "`touch CANARY`", "a b$(touch CANARY)", "x\ntouch CANARY\n",
    "*) touch CANARY;;", "x;touch CANARY", "${x:-$(touch CANARY)}", "<(touch CANARY)", "'$(touch CANARY)'",
    "\\'; touch CANARY #", "-a\ttouch",
)  # fmt: skip
LINES = ("workbench tr", "workbench train ", "workbench train recipe=", "workbench train model=", "workbench plan x=")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_file_or_folder_here_runs_nothing_in_the_shell_that_completes(name: str, here: Path) -> None:
    probe = completion("bash", {"model": [name, "größe-2.1"], name: ["x"]}, [name, "mine"]) + "".join(
        f"COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({line} ''); COMP_CWORD={len(line.split()) - 1}\n"
        "_workbench 2>/dev/null; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
        for line in LINES
    )
    done = subprocess.run(["bash", "-c", probe], cwd=here, capture_output=True, text=True, timeout=20)
    assert not (here / "CANARY").exists()
    assert {"mine", "größe-2.1", "train"} <= set(done.stdout.split()), done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_is_printed_for_both_shells_and_bash_reads_it(capfd: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capfd.readouterr().out
        assert "-F _workbench workbench" in script
        assert ("bashcompinit" in script) == (shell == "zsh")
        assert "smollm2_135m" in script
        assert "legal_lora" in script
    assert subprocess.run(["bash", "-n"], input=script.partition("\n")[2], text=True).returncode == 0
