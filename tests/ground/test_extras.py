"""The bare package and its extras: what is declared, what each verb asks for, and what a missing piece is answered."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bare_environment import ROOT, bare_distributions, hidden_modules, run_bare
from bundle_project import new_project
from workbench.__main__ import VERBS
from workbench.compose import composed, find_recipe
from workbench.errors import RequestError
from workbench.extras import EXTRAS, explained, install_line, missing_modules, require
from workbench.recipe import read
from workbench.stages.lifecycle import extras_for

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions that come with one that the extra names.
BROUGHT = {
    "auto-round": "llmcompressor", "compressed-tensors": "llmcompressor", "flask": "mlflow",
    "optuna": "hydra-optuna-sweeper", "submitit": "hydra-submitit-launcher",
}  # fmt: skip
APART = {"slurm", "sweep"}  # no stage needs them: who sweeps on a cluster, or searches, asks for them by name


def named(extra: str) -> set[str]:
    """The canonical names of an extra's own distributions."""
    return {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"][extra]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_module_of_an_extra_is_brought_by_that_extra_and_each_distribution_has_a_module(extra: str) -> None:
    owners = metadata.packages_distributions()
    brought = {canonicalize_name(owners[module][0]) for module in EXTRAS[extra]}
    assert {BROUGHT.get(name, name) for name in brought} == named(extra) - {"llm-workbench"}


def test_no_extra_holds_what_is_bare_and_all_holds_every_one_that_a_stage_needs() -> None:
    bare = bare_distributions()
    assert {extra: named(extra) & bare for extra in EXTRAS if named(extra) & bare} == {}
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.extras == set(EXTRAS) - APART
    assert "llm-workbench[all]" in PROJECT["optional-dependencies"]["dev"]  # the tests need all of it


def test_the_bare_package_brings_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pandas", "pyarrow", "scikit-learn", "matplotlib", "statsmodels", "mlflow"}
    assert heavy & bare_distributions() == set()
    assert {"torch", "transformers", "flask", "xllamacpp", "phonenumbers"} <= hidden_modules()


@pytest.mark.parametrize(
    ("verb", "recipe", "words", "extras"),
    [
        ("train", "legal_lora", [], ["train", "quantize", "llamacpp"]),
        ("train", "legal_lora", ["until=merge"], ["train"]),
        ("train", "legal_lora", ["quantize=[]"], ["train"]),
        ("train", "legal_distil", [], ["train", "quantize", "teacher", "llamacpp"]),
        ("train", "legal_distil_openai", ["until=label"], ["teacher"]),
        ("label", "legal_distil", [], ["teacher", "llamacpp"]),
        ("label", "legal_distil_openai", [], ["teacher"]),
        ("merge", "legal_lora", [], ["train"]),
        ("quantize", "legal_lora", [], ["train", "quantize"]),
        ("evaluate", "legal_lora", [], ["train", "llamacpp"]),
        ("register", "legal_lora", [], []),
    ],
)
def test_a_stage_asks_for_what_it_needs_on_this_recipe_and_for_no_more(
    verb: str, recipe: str, words: list[str], extras: list[str]
) -> None:
    assert extras_for(verb, read(composed(find_recipe(recipe), words), recipe)) == extras


def test_what_is_here_is_asked_for_in_silence_and_what_is_not_names_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require("train", EXTRAS)
    assert explained(ModuleNotFoundError("no", name="no_such_module")) is None
    monkeypatch.setitem(EXTRAS, "train", ("json", "no_such_a", "no_such_b", "no_such_c", "no_such_d"))
    monkeypatch.setitem(EXTRAS, "teacher", ("no_such_e",))
    assert missing_modules("train") == ["no_such_a", "no_such_b", "no_such_c", "no_such_d"]
    with pytest.raises(RequestError, match="label needs no_such_a, no_such_b, no_such_c, …, no_such_e") as refused:
        require("label", ["train", "teacher", "energy"])
    assert refused.value.remedy == "pip install 'llm-workbench[train,teacher]'" == install_line("train", "teacher")
    error = explained(ModuleNotFoundError("no", name="no_such_e.inside"))
    assert error is not None
    assert (error.exit_code, error.remedy) == (2, install_line("teacher"))


@pytest.mark.slow
def test_the_bare_package_plans_previews_and_looks_at_the_machine(tiny_model: Path, tmp_path: Path) -> None:
    project = new_project(tmp_path, tiny_model)
    planned = run_bare("plan", "recipe=./mine.yaml", "output=json", folder=project)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["model"]["here"] == "yes"
    assert "≈" not in json.loads(planned.stdout)["data"]["tokens"]  # counted by the model's own tokenizer
    shown = run_bare("preview", "recipe=./mine.yaml", "output=json", folder=project)
    assert shown.returncode == 0, shown.stderr
    looked = run_bare("doctor", "output=json", folder=project)
    assert looked.returncode == 0, looked.stderr
    assert json.loads(looked.stdout)["libraries"]["torch"] != ""
    assert install_line("train") in json.loads(looked.stdout)["devices"]["cuda"]
    table = run_bare("doctor", folder=project)
    assert "[llamacpp]" in table.stdout  # no style of the table's
    assert run_bare("--help", folder=project).returncode == 0


@pytest.mark.slow
def test_a_tokenizer_that_only_transformers_reads_is_counted_by_characters_and_not_shown(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    project = new_project(tmp_path / "project", model)
    planned = run_bare("plan", "recipe=./mine.yaml", "output=json", folder=project)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["data"]["tokens"].startswith("≈")
    shown = run_bare("preview", "recipe=./mine.yaml", folder=project)
    assert shown.returncode == 2
    assert "transformers, not installed here" in shown.stderr
    assert install_line("train") in shown.stderr


@pytest.mark.parametrize("verb", ["plan", "preview"])
def test_with_everything_installed_looking_still_imports_nothing_heavy(
    verb: str, tiny_model: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from workbench.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers', 'sklearn', 'scipy', 'pandas', 'pyarrow', 'mlflow'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, verb, "recipe=./mine.yaml"]
    done = subprocess.run(command, cwd=new_project(tmp_path, tiny_model), capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["train", "recipe=./mine.yaml"], "[train]"),
        (["quantize", "recipe=./mine.yaml"], "[train]"),
        (["label", "recipe=legal_distil_openai"], "[teacher]"),
        (["ui"], "[train]"),
        (["evaluate", "model=models:/a@b", "data=x.jsonl"], "[train]"),
    ],
)
def test_a_verb_that_is_more_than_bare_names_the_command_that_installs_it(
    words: list[str], extra: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = run_bare(*words, folder=new_project(tmp_path, tiny_model))
    assert done.returncode == 2, done.stderr
    assert f"{words[0]} needs " in done.stderr
    assert f"pip install 'llm-workbench{extra}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert words[0] in VERBS
    assert not (tmp_path / "experiments").exists()


def test_a_wrong_key_is_answered_before_a_missing_extra(tmp_path: Path) -> None:
    done = run_bare("train", "recipe=legal_lora", "method.learning_rat=1", folder=tmp_path)
    assert done.returncode == 2
    assert "method.learning_rate" in done.stderr
    assert "pip install" not in done.stderr
