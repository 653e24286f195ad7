"""The door: what is refused, how fast, with which words and which exit code; and that nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.__main__ import main
from yardstick import cpu_seconds, start

ROOT = Path(__file__).parents[2]
AT_ONCE = 6  # times what it takes to import Hydra: under two seconds on a machine that does so in a third of one


def workbench(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench", *words], cwd=folder or ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("words", "named", "nearest"),
    [
        (["method.learning_rat=1"], "method.learning_rat", "method.learning_rate"),
        (["+method.lr=1"], "method.lr", "method.learning_rate"),
        (["recipe=legal_lro"], "legal_lro", "legal_lora"),
        (["model=qwen9"], "qwen9", "qwen3_5_9b"),
        (["+method._target_=os.system"], "method._target_", "choose by name"),
        (["token=abc"], "token", "environment variable"),
        (["model.source=hf_abcdefghijklmnopqrstuvwxyz"], "model.source", "environment variable"),
        (["method.rank=lots"], "method.rank", "no whole number"),
        (["method.rank=0"], "method.rank", "at least 1"),
        (["method.kind=lora2"], "method.kind", "'lora'"),
        (["method.micro_batch_tokens=3"], "method.micro_batch_tokens", "at least 16"),
        (["method.optimizer=adamw_8bit", "method.kind=full"], "method.optimizer", "method.optimizer=adamw"),
        (["quantize=[w8a9]"], "w8a9", "w8a8"),
        (["data.train=nowhere.jsonl"], "data.train=nowhere.jsonl", "no such file"),
        (["until=trian"], "trian", "'train'"),
        (["model.source=${oc.env:HOME}"], "model.source", "resolver"),
        (["rubbish"], "rubbish", "key=value"),
    ],
)
def test_a_wrong_word_ends_with_exit_2_at_once_naming_the_key_and_writing_nothing(
    words: list[str], named: str, nearest: str, tmp_path: Path
) -> None:
    recipe = [] if words[0].startswith("recipe=") else ["recipe=legal_lora"]
    command = (sys.executable, "-m", "workbench", "train", *recipe, *words)
    seconds, done = cpu_seconds(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert nearest in done.stderr
    assert "Traceback" not in done.stderr
    assert "abc" not in done.stderr.replace("abcdef", "") or "token" not in words[0], "a secret was repeated"
    assert list(tmp_path.iterdir()) == []
    assert seconds < AT_ONCE * start(), f"{seconds:.1f} s"


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("defaults: [workbench, {model: smollm2_135m}, _self_]\ndata: {_target_: os.system}", "_target_"),
        ("defaults: [workbench, {model: smollm2_135m}, _self_]\ndata: {trian: x.csv}", "data.train"),
        ("defaults: [workbench, {model: smollm3}, _self_]", "smollm3"),
        ("defaults: [workbench, {modle: smollm2_135m}, _self_]", "modle"),
        ("model: {source: x}", "workbench"),
        ("defaults: [workbench, _self_]\nmodel: {source: '${oc.env:HOME}'}", "resolver"),
        ("defaults: [workbench, _self_]\nmodel: {source: x", "not valid YAML"),
        ("defaults: [workbench, {model: smollm2_135m}, _self_]", "data.train"),
    ],
)
def test_a_wrong_recipe_file_is_refused_with_exit_2_naming_what_is_wrong(yaml: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml)
    done = workbench("plan", "recipe=./mine.yaml", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_verb_names_the_nearest_one() -> None:
    done = workbench("trian", "recipe=legal_lora")
    assert done.returncode == 2
    assert "'train'" in done.stderr


def test_a_verb_without_a_recipe_says_which_there_are() -> None:
    done = workbench("train")
    assert done.returncode == 2
    assert "legal_lora" in done.stderr


@pytest.mark.slow
def test_a_sweep_with_a_wrong_value_ends_with_exit_2(tmp_path: Path) -> None:
    done = workbench("plan", "recipe=legal_lora", "method.rank=0,8", "-m", folder=tmp_path)
    assert done.returncode == 2
    assert "method.rank" in done.stderr


@pytest.mark.slow
def test_a_sweep_runs_the_task_once_for_each_combination_and_recipe(tmp_path: Path) -> None:
    done = workbench("plan", "recipe=legal_lora,legal_full", "method.rank=4,8", "output=json", "-m", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"training"') == 4


def test_help_lists_every_verb() -> None:
    from workbench.__main__ import VERBS

    done = workbench("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("wanted", [None, "active"])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(
    wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", wanted or "")
    if wanted is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == (wanted or "passive")
