"""Code in a recipe, in a word or in the current folder: not run. Each payload would leave its mark in one file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from workbench import __main__ as door

ROOT = Path(__file__).parents[2]
# Python itself looks for these before it looks for the package that `-m` names: no package can keep them out.
BEFORE_ANY_PACKAGE = (
    "importlib", "warnings", "contextlib", "collections", "keyword", "operator", "reprlib", "functools", "types",
)  # fmt: skip
MARK = "CANARY"
TOUCH = ["touch", MARK]
CALL: dict[str, Any] = {"_target_": "subprocess.call", "_args_": [TOUCH]}
HANDLER = {"version": 1, "handlers": {"h": {"()": "subprocess.call", "args": TOUCH}}, "root": {"handlers": ["h"]}}
EXTERNAL = {"version": 1, "handlers": {"h": {"()": "ext://subprocess.call", "args": TOUCH}}}
EMPTIES = {"version": 1, "handlers": {"h": {"class": "logging.FileHandler", "filename": "precious.txt", "mode": "w"}},
           "root": {"handlers": ["h"]}}  # fmt: skip
OURS = {"version": 1, "handlers": {"h": {"()": "workbench.files.write_whole", "path": MARK, "text": "x"}}}
FORMATTER = {"version": 1, "formatters": {"f": {"()": "subprocess.call", "args": TOUCH}}}
FILTER = {"version": 1, "filters": {"f": {"()": "subprocess.call", "args": TOUCH}}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with rows and a file that must stay as it is."""
    (tmp_path / "rows.csv").write_text("prompt,completion\n" + "".join(f"say {n},{n}\n" for n in range(40)))
    (tmp_path / "precious.txt").write_text("ten years of work")
    (tmp_path / "mine.yaml").write_text(recipe())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_SECRET", "canary-of-the-environment")
    return tmp_path


def recipe(defaults: list[Any] | None = None, **more: Any) -> str:
    """A recipe's text, with other sections put into it."""
    told = {"defaults": defaults or ["workbench", "_self_"], "model": {"source": "hf:nobody/nothing"}}
    return yaml.safe_dump(told | {"data": {"train": "rows.csv"}} | more, sort_keys=False)


def refused(project: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Whatever the flags, the command ends as a wrong request; nothing ran, and the environment is not told."""
    said = ""
    for flags in (["-m"], ["--cfg", "job"], []):
        assert door.main(["plan", "recipe=./mine.yaml", *words, *flags]) == 2, flags
        output = capsys.readouterr()
        said += output.out + output.err
    assert_untouched(project, said)


def assert_untouched(project: Path, said: str = "") -> None:
    """No payload has left its mark."""
    assert not (project / MARK).exists()
    assert (project / "precious.txt").read_text() == "ten years of work"
    assert "canary-of-the-environment" not in said
    assert "TRAPPED" not in os.environ


@pytest.mark.parametrize(
    "node",
    [
        {"callbacks": {"x": CALL}},
        {"callbacks": {"x": {"_target_": "hydra.experimental.callback.Callback"}}},
        {"job_logging": HANDLER},
        {"hydra_logging": HANDLER},
        {"job_logging": EXTERNAL},
        {"hydra_logging": EXTERNAL},
        {"job_logging": EMPTIES},
        {"hydra_logging": EMPTIES},
        {"job_logging": OURS},
        {"hydra_logging": OURS},
        {"job_logging": FORMATTER},
        {"job_logging": FILTER},
        {"job_logging": {"version": 1, "root": {"level": "ext://sys.exit"}}},
        {"job_logging": {"version": 1, "disable_existing_loggers": True}},
        {"job": {"env_set": {"TRAPPED": "1"}}},
        {"job": {"env_set": {"PYTHONPATH": "."}}},
        {"job": {"env_copy": ["SOME_SECRET"]}},
        {"job": {"chdir": True}},
        {"job": {"name": "${oc.env:SOME_SECRET}"}},
        {"job": {"config": {"override_dirname": {"kv_sep": "/"}}}},
        {"launcher": CALL},
        {"launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher", "x": CALL}},
        {"sweeper": CALL},
        {"sweeper": {"_target_": "os.system"}},
        {"sweeper": {"params": {"hydra.callbacks.x._target_": "os.system"}}},
        {"sweeper": {"params": {"+hydra.job.env_set.TRAPPED": "1"}}},
        {"sweeper": {"params": {"hydra/launcher": "basic", "hydra.run.dir": "/"}}},
        {"sweeper": {"params": {"_target_": "os.system"}}},
        {"sweeper": {"params": {"x": CALL}}},
        {"sweeper": {"params": [f"x={MARK}"]}},
        {"sweeper": {"params": {"method.rank": "${oc.env:SOME_SECRET}"}}},
        {"sweeper": {"max_batch_size": CALL}},
        {"searchpath": ["file:///tmp"]},
        {"searchpath": ["pkg://trap_package"]},
        {"run": {"dir": "/tmp/elsewhere"}},
        {"sweep": {"dir": "/tmp/elsewhere"}},
        {"sweep": {"subdir": "../../.."}},
        {"output_subdir": "../precious"},
        {"mode": "MULTIRUN"},
        {"help": {"template": "${oc.env:SOME_SECRET}"}},
        {"overrides": {"hydra": ["hydra.job.env_set.TRAPPED=1"]}},
        {"runtime": {"output_dir": "/"}},
        {"verbose": ["root"]},
        {"_target_": "os.system"},
        "${oc.create:{callbacks:{}}}",
        None,
    ],
    ids=str,
)
def test_a_recipe_sets_nothing_of_hydra(node: Any, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if node is None:  # another spelling of the same place
        (project / "mine.yaml").write_text(recipe(**{"hydra.callbacks": {"x": CALL}}))
    else:
        (project / "mine.yaml").write_text(recipe(hydra=node))
    refused(project, capsys)


@pytest.mark.parametrize(
    "defaults",
    [
        [{"override hydra/launcher": "joblib"}],
        [{"override /hydra/job_logging": "evil"}],
        [{"override hydra/callbacks": "evil"}],
        [{"/hydra/callbacks": "evil"}],
        [{"hydra/callbacks": "evil"}],
        [{"hydra": "evil"}],
        [{"optional hydra": "evil"}],
        ["/hydra/callbacks/evil"],
        ["hydra/callbacks/evil"],
        ["../evil"],
        ["evil@hydra"],
        ["evil@_global_"],
        [{"model@hydra": "evil"}],
        [{"model@hydra.callbacks": "evil"}],
        [{"model": "${oc.env:SOME_SECRET}"}],
        [{"${oc.env:SOME_SECRET}": "x"}],
        ["${oc.env:SOME_SECRET}"],
        ["evil"],
        [{"model": "packaged"}],
        [{"model": "with_defaults"}],
        [{"model": ["packaged"]}],
        [{"model": "resolving"}],
    ],
    ids=str,
)
def test_no_file_that_a_recipe_brings_in_reaches_hydra(
    defaults: list[Any], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(recipe(["workbench", *defaults, "_self_"]))
    body = yaml.safe_dump({"callbacks": {"x": CALL}})
    (project / "evil.yaml").write_text(f"# @package hydra\n{body}")
    for folder in (project / "model", project / "configs" / "model"):
        folder.mkdir(parents=True)
        (folder / "evil.yaml").write_text(body)
        (folder / "packaged.yaml").write_text(f"\n  #  @package hydra\n{body}")
        (folder / "with_defaults.yaml").write_text("defaults: [{override /hydra/callbacks: evil}]\nname: x\n")
        (folder / "resolving.yaml").write_text("name: ${oc.env:SOME_SECRET}\n")
    refused(project, capsys)


TRAPPING = yaml.safe_dump({"hydra": {"job": {"env_set": {"TRAPPED": "1"}}}})
SWEEPING = yaml.safe_dump({"hydra": {"sweeper": {"params": {"+hydra.job.env_set.TRAPPED": "1"}}}})


@pytest.mark.parametrize(
    ("brought", "files"),
    [
        # A sweep of a file beside the recipe's own: its words are no less words.
        (["part"], {"part.yaml": SWEEPING}),
        (["part"], {"configs/part.yaml": SWEEPING}),
        ([{"method": "evil"}], {"configs/method/evil.yaml": f"# a noun\n{SWEEPING}"}),
        # For `evil.yaml` Hydra reads evil.yaml, and not evil.yaml.yaml.
        ([{"method": "evil.yaml"}],
         {"configs/method/evil.yaml.yaml": "{}", "configs/method/evil.yaml": f"# @package _global_\n{TRAPPING}"}),
        # A sibling is looked for in every folder that has its group.
        ([{"method": "evil"}],
         {"configs/method/evil.yaml": "defaults: [part]", "method/part.yaml": f"# @package _global_\n{TRAPPING}"}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("swept", [False, True])
def test_every_file_that_hydra_reads_for_a_name_is_looked_at(
    swept: bool, brought: list[Any], files: dict[str, str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    named = brought[0].get("method") if isinstance(brought[0], dict) else ""
    if swept and named:
        sweep = {"sweeper": {"params": {"method": f"lora,{named}"}}}
        (project / "mine.yaml").write_text(recipe(["workbench", {"method": "lora"}, "_self_"], hydra=sweep))
    else:
        (project / "mine.yaml").write_text(recipe(["workbench", *brought, "_self_"]))
    for flags in (["-m"], ["--cfg", "job"]):
        assert door.main(["plan", "recipe=./mine.yaml", *flags]) == 2
    assert_untouched(project, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["mine.yml", "other.yaml.yaml", "link.yaml"])
def test_a_recipe_is_the_very_file_that_hydra_will_read(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "other.yaml").write_text(recipe(hydra=yaml.safe_load(TRAPPING)["hydra"]))
    (project / "mine.yaml").write_text(recipe(hydra=yaml.safe_load(TRAPPING)["hydra"]))
    (project / "other").write_text(recipe())
    if name == "link.yaml":
        (project / name).symlink_to("other")
    else:
        (project / name).write_text(recipe())
    refusal = "ends in .yaml, once"
    for flags in (["-m"], []):
        assert door.main(["plan", f"recipe=./{name}", *flags]) == 2
        assert refusal in capsys.readouterr().err
    assert_untouched(project)


TAGGED = (
    "!!python/object/apply:subprocess.call [[touch, CANARY]]", "!!python/object/new:subprocess.Popen [[touch, CANARY]]",
    "!!python/object/apply:os.system ['touch CANARY']", "!!python/name:os.system ''", "!!python/module:os ''",
    "!!python/object:subprocess.Popen {args: [touch, CANARY]}", "!<tag:yaml.org,2002:python/object/apply:os.abort> []",
    "!!python/tuple [!!python/object/apply:subprocess.call [[touch, CANARY]]]",
)  # fmt: skip


@pytest.mark.parametrize("value", TAGGED)
def test_a_tag_of_python_s_own_makes_no_object_in_a_recipe_a_noun_or_another_tool_s_file(
    value: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(recipe() + f"bundle: {{intended_use: {value}}}\n")
    refused(project, capsys)
    (project / "configs" / "method").mkdir(parents=True)
    (project / "configs" / "method" / "evil.yaml").write_text(f"name: {value}\n")
    (project / "mine.yaml").write_text(recipe(["workbench", {"method": "evil"}, "_self_"]))
    refused(project, capsys)
    (project / "theirs.yaml").write_text(f"base_model: org/name\ndatasets: {value}\nsequence_len: 512\n")
    assert door.main(["init", "from=theirs.yaml"]) == 2
    assert_untouched(project, capsys.readouterr().err)


LAUGHS = "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    "more",
    [f"a0: &a0 [x,x,x,x,x,x,x,x,x]\n{LAUGHS}", "bundle: &x\n  intended_use: *x\n", "bundle: &x [*x]\n",
     f"bundle: {'[' * 20_000}{']' * 20_000}\n", f"bundle: {'[' * 60}{']' * 60}\n", f"# {'x' * 1_000_000}\n",
     f"bundle: {{a: 1{'0' * 5000}}}\n", "seed: 1\nseed: 2\n", "bundle: 2001-99-99\n"],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_yaml_that_has_no_end_or_no_sense_is_refused_at_once(
    more: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(recipe() + more)
    for flags in (["-m"], ["--cfg", "job"], []):
        assert door.main(["plan", "recipe=./mine.yaml", *flags]) == 2
        assert "mine.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "configs"])
@pytest.mark.parametrize(
    "name",
    ["hydra/config.yaml", "hydra/launcher/basic.yaml", "hydra/sweeper/basic.yaml", "hydra/env/default.yaml",
     "hydra/job_logging/disabled.yaml", "hydra.yaml", "workbench.yaml"],
)  # fmt: skip
def test_files_that_hydra_would_take_for_its_own_are_refused(
    place: str, name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project / place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"hydra": {"callbacks": {"x": CALL}}}) if "/" not in name else yaml.safe_dump(CALL))
    refused(project, capsys)


@pytest.mark.parametrize(
    "word",
    [
        "hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "++hydra.callbacks.x={_target_:subprocess.call,_args_:[[touch,CANARY]]}",
        "+hydra.callbacks={x:{_target_:subprocess.call,_args_:[[touch,CANARY]]}}",
        "hydra={callbacks:{x:{_target_:subprocess.call,_args_:[[touch,CANARY]]}}}",
        "hydra.job_logging={version:1}",
        "hydra/job_logging=default",
        "hydra/hydra_logging=colorlog",
        "hydra/job_logging@hydra.callbacks=default",
        "+hydra.job.env_set.TRAPPED=1",
        "+hydra.job.env_set={TRAPPED:1}",
        "hydra.job.env_copy=[SOME_SECRET]",
        "hydra.job.chdir=true",
        "hydra.job.name=${oc.env:SOME_SECRET}",
        "hydra.launcher._target_=os.system",
        "hydra/launcher=evil",
        "hydra/launcher=../evil",
        "hydra/launcher=basic,evil",
        "hydra/launcher@x=basic",
        "hydra/sweeper=evil",
        "hydra.launcher.setup=[touch]",
        "hydra.launcher.python=/bin/sh",
        "hydra.launcher.partition=x;touch",
        "hydra.launcher.n_jobs=${oc.env:SOME_SECRET}",
        "hydra.sweeper._target_=os.system",
        "hydra.sweeper.params={x:1}",
        "hydra.sweeper.storage=sqlite:///elsewhere.db",
        "hydra.sweeper.custom_search_space=os.system",
        "hydra.sweeper.sampler._target_=os.system",
        "hydra.sweeper.sampler={_target_:os.system}",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.n_trials=${oc.env:SOME_SECRET}",
        "hydra.sweeper.direction=sideways",
        "hydra.searchpath=[pkg://trap_package]",
        "+hydra.searchpath=[file:///tmp]",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra.sweep.dir=/tmp/elsewhere",
        "hydra.sweep.subdir=..",
        "hydra.output_subdir=precious",
        "hydra.mode=MULTIRUN",
        "~hydra.callbacks",
        "~hydra",
        "hydrant=1",
        "model@hydra=smollm2_135m",
        "+model@hydra.callbacks=smollm2_135m",
        "+quantize.x@hydra.callbacks={format:w8a8}",
        "model={_target_:os.system}",
        "data.train=${oc.env:SOME_SECRET}",
        "data.train=${oc.${gate.name}:SOME_SECRET}",
        "data.train=${ oc.env :SOME_SECRET}",
        "data.train=${oc.env:${data.name}}",
        "data.train='${oc.decode:${oc.env:SOME_SECRET}}'",
        "data.name=${now:%Y}",
        "data.name=${hydra:runtime.cwd}",
        "data.name=${python_version:micro}",
        "+quantize={'${oc.env:SOME_SECRET}':{format:w8a8}}",
    ],
)
def test_a_word_sets_nothing_of_hydra_and_resolves_nothing(
    word: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(project, capsys, word)


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SOME_SECRET}", "${ oc.env : SOME_SECRET }", "${oc.${gate.name}:SOME_SECRET}",
        "${${gate.name}.env:SOME_SECRET}", "${oc.env:${data.name}}", "${data.${oc.env:SOME_SECRET}}",
        "x${oc.env:SOME_SECRET}y", "${oc.dict.values:data}", "${oc.select:data.name}", "${oc.create:{a:1}}",
        "${oc.decode:'${oc.env:SOME_SECRET}'}", "${oc.deprecated:data.name}", "${hydra:job.name}", "${now:%Y}",
        "${.name:x}", "${data.name}${oc.env:SOME_SECRET}", "${\noc.env\n:SOME_SECRET}", "\\${oc.env:SOME_SECRET}",
        "${oc.env:SOME_SECRET",
    ],
)  # fmt: skip
def test_no_resolver_is_called_in_a_value_a_key_or_a_list(
    value: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ({"bundle": {"intended_use": value}}, {"evaluate": {"labels": [value]}},
                 {"teacher": {"fields": {value: []}}}, {"quantize": {value: {"format": "w8a8"}}}):  # fmt: skip
        (project / "mine.yaml").write_text(recipe(gate={"name": "env"}, **more))
        refused(project, capsys)


@pytest.mark.parametrize("configs", [False, True])
def test_no_resolver_is_called_in_the_name_of_the_current_folder(
    configs: bool, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = project / "${oc.env:SOME_SECRET}"
    here.mkdir()
    for name in ("rows.csv", "mine.yaml", "precious.txt"):
        (here / name).write_bytes((project / name).read_bytes())
    if configs:
        (here / "configs" / "model").mkdir(parents=True)
    monkeypatch.chdir(here)
    for flags in (["-m"], ["--cfg", "job"], []) if configs else (["-m"],):
        assert door.main(["plan", "recipe=./mine.yaml", *flags]) == 2
    assert_untouched(here, capsys.readouterr().err)
    assert not list(project.rglob("*canary*"))


def test_a_refused_resolver_does_not_repeat_a_secret_beside_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(recipe(bundle={"intended_use": "hf_abcdefghijklmnopqrstuvwxyz ${oc.env:HOME}"}))
    assert door.main(["plan", "recipe=./mine.yaml"]) == 2
    assert "hf_abc" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--config-dir", "."], ["--config-dir=."], ["-cd", "."], ["--config-path=."], ["-cp", "."],
        ["--config-name", "evil"], ["-cn=evil"], ["--conf=x"], ["--experimental-rerun", "config.pickle"],
        ["--experimental-rerun=config.pickle"], ["--exp=config.pickle"], ["--package=hydra"], ["-p", "hydra"],
        ["--shell-completion=install=bash"], ["-sc"], ["--run"], ["-r"], ["--cfg=hydra.callbacks"], ["-mx"],
        ["-m=1"], ["--info=evil"], ["--"],
    ],
)  # fmt: skip
def test_only_flags_that_show_or_sweep_are_taken(
    flags: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pickle

    (project / "config.pickle").write_bytes(pickle.dumps(Trap()))
    assert door.main(["plan", "recipe=./mine.yaml", *flags]) == 2
    said = capsys.readouterr().err
    assert "no flag" in said or "cannot read" in said
    assert_untouched(project, said)


class Trap:
    """Leaves its mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return subprocess.call, (TOUCH,)


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"callbacks": {"x": CALL}}, "hydra.callbacks.x"),
        ({"job_logging": HANDLER}, "hydra.job_logging"),
        ({"hydra_logging": EMPTIES}, "hydra.hydra_logging"),
        ({"job": {"env_set": {"TRAPPED": "1"}}}, "hydra.job.env_set"),
        ({"job": {"chdir": True}}, "hydra.job.chdir"),
        ({"launcher": CALL}, "hydra.launcher"),
        ({"sweeper": {"_target_": "os.system"}}, "hydra.sweeper"),
        ({"overrides": {"hydra": ["hydra.job.env_set.TRAPPED=1"]}}, "hydra.overrides"),
        ({"mode": "MULTIRUN"}, "hydra.mode"),
    ],
    ids=str,
)
def test_what_a_file_would_slip_past_the_reading_is_seen_in_the_composed_config(
    node: Any, named: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("workbench.hydra_guard.check_text", lambda text, content, path: None)
    (project / "mine.yaml").write_text(recipe(hydra=node))
    assert door.main(["plan", "recipe=./mine.yaml", "-m"]) == 2
    assert named in capsys.readouterr().err
    assert_untouched(project)


def test_a_recipe_may_hold_the_values_of_its_own_sweep(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {"sweeper": {"params": {"method.rank": "4,8", "seed": 3}}}
    (project / "mine.yaml").write_text(recipe(hydra=sweep, bundle={"intended_use": "seed ${seed}, ${ .context }"}))
    assert door.main(["plan", "recipe=./mine.yaml", "output=json", "-m"]) == 0
    said = capsys.readouterr().out
    assert "rank 4" in said
    assert "rank 8" in said
    assert door.main(["plan", "recipe=./mine.yaml", "output=json"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["-m"], ["--multirun", "hydra/launcher=basic", "hydra/sweeper=basic"]])
def test_a_sweep_over_a_method_and_over_recipes_runs_each(
    flags: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "recipes").mkdir()
    for name in ("a", "b"):
        (project / "recipes" / f"{name}.yaml").write_text(recipe(["workbench", {"method": "lora"}, "_self_"]))
    assert door.main(["plan", "recipe=a,b", "method=lora,full", "output=json", *flags]) == 0
    assert capsys.readouterr().out.count('"training"') == 4


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"], ["--cfg", "job", "--resolve"]])
def test_the_composed_recipe_can_be_shown(flags: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["plan", "recipe=./mine.yaml", "method.rank=5", *flags]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"]["rank"] == 5


def plant(folder: Path, names: list[str]) -> None:
    """A module of each name that leaves its mark when it is imported, and then is of no use."""
    trap = f"open({str(folder / MARK)!r}, 'a').write(__name__ + '\\n')\nraise ImportError(__name__)\n"
    for name in names:
        (folder / f"{name}.py").write_text(trap)


def start(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The door in a process of its own, in that folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    env.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-m", "workbench", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def names_of_the_library() -> list[str]:
    """Every module of the standard library that a file in the current folder could stand for."""
    return [n for n in sys.stdlib_module_names if n not in BEFORE_ANY_PACKAGE and n not in sys.builtin_module_names]


def test_nothing_is_imported_before_the_current_folder_is_left(project: Path) -> None:
    plant(project, names_of_the_library())
    done = start(project, "--version")
    assert done.returncode == 0, done.stderr
    assert not (project / MARK).exists(), (project / MARK).read_text()


@pytest.mark.slow
def test_a_folder_full_of_traps_is_no_code(project: Path) -> None:
    """Every module of the standard library and of ours by name, plugins, and metadata with entry points."""
    found = names_of_the_library()
    third = ["yaml", "omegaconf", "hydra", "antlr4", "rich", "filelock", "platformdirs", "torch", "numpy", "datasets",
             "transformers", "mlflow", "httpx2", "pydantic", "jinja2", "safetensors", "sentencepiece", "scipy",
             "sitecustomize", "usercustomize", "trap_source", "trap_package"]  # fmt: skip
    plant(project, [*found, *third])
    for name in ("omegaconf", "yaml", "torch", "transformers", "numpy", "logging", "encodings"):
        (project / name).mkdir()  # a package is looked for before a module of its name; `hydra/` is refused
        plant(project / name, ["__init__"])
    (project / "trap.pth").write_text(f"import os; os.system('touch {MARK}')\n")
    (project / "hydra_plugins").mkdir()
    plant(project, ["hydra_plugins/trap"])
    info = project / "trap-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
    groups = {"workbench.sources": "trap", "workbench.scorers": "trap", "workbench.teachers": "trap"}
    (info / "entry_points.txt").write_text("".join(f"[{g}]\n{n} = trap_source:run\n" for g, n in groups.items()))
    done = start(project, "plan", "recipe=./mine.yaml", "method.rank=4,8", "-m")
    assert done.returncode == 0, done.stderr
    assert not (project / MARK).exists(), (project / MARK).read_text()
    for words in (["data.train=trap:x"], ["evaluate.scorer=trap"]):
        done = start(project, "plan", "recipe=./mine.yaml", *words)
        assert done.returncode == 2, done.stderr
        assert not (project / MARK).exists(), (project / MARK).read_text()


def test_an_empty_entry_and_a_dot_in_pythonpath_are_the_current_folder_and_a_named_folder_is_the_users(
    project: Path,
) -> None:
    plant(project, ["yaml", "omegaconf", "hydra"])
    (project / "named").mkdir()
    plant(project / "named", ["sentencepiece"])
    here = os.pathsep.join([".", "", str(ROOT / "src"), str(project / "named"), "./"])
    done = start(project, "plan", "recipe=./mine.yaml", PYTHONPATH=here)
    assert done.returncode == 0, done.stderr
    assert not (project / MARK).exists(), (project / MARK).read_text()
    code = (
        "import sys; sys.argv[0] = 'workbench'; import workbench, os\n"
        "print(sys.path, os.environ['PYTHONPATH'], os.environ['PYTHONSAFEPATH'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=project, env={**os.environ, "PYTHONPATH": here},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert repr(str(project / "named")) in done.stdout
    assert repr(str(project)) not in done.stdout
    assert f" {ROOT / 'src'}{os.pathsep}{project / 'named'} 1" in done.stdout


def test_the_current_folder_stays_on_the_path_of_a_program_that_imports_the_package(project: Path) -> None:
    code = "import workbench, sys, os; print('' in sys.path, 'PYTHONSAFEPATH' in os.environ)"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    env.pop("PYTHONSAFEPATH", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True)
    assert done.stdout == "True False\n"


def test_children_take_no_code_from_the_current_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.engines.child import call
    from workbench.errors import WorkbenchError
    from workbench.sources.resolve import fetch_pypi, read_pypi
    from workbench.tracking import serve_ui

    plant(project, ["pip", "mlflow", "uvicorn", "trap_package"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(ROOT / "src"), "."]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (project / "into").mkdir()
    with pytest.raises(WorkbenchError, match="pip could not fetch"):
        fetch_pypi(read_pypi("nothing-of-that-name==1"), project / "into")
    with pytest.raises(WorkbenchError, match="No module named 'trap_package'"):
        call("trap_package:run", {}, what="the trap")
    seen: dict[str, Any] = {}

    def no_server(command: list[str], **options: Any) -> None:
        seen.update(options, command=command, there=list(Path(options["cwd"]).iterdir()))
        raise WorkbenchError("not started")

    monkeypatch.setattr("workbench.tracking.store.subprocess.Popen", no_server)
    with pytest.raises(WorkbenchError, match="not started"):
        serve_ui("sqlite:///here.db", 5000, project, print)
    assert {path.name for path in seen["there"]} <= {".lock"}, "nothing that could be code"
    assert seen["env"]["PYTHONSAFEPATH"] == "1"
    assert f"sqlite:///{project / 'here.db'}" in seen["command"]
    assert not (project / MARK).exists(), (project / MARK).read_text()


def test_entry_points_come_from_site_packages_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.extras import entry_points

    info = project / "trap-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workbench.sources]\ntrap = trap_source:run\n")
    monkeypatch.syspath_prepend(project)
    assert [point.name for point in entry_points("workbench.sources")] == ["mlflow"]


def git(folder: Path, *words: str) -> None:
    """Git as a user runs it."""
    named = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *named, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(project: Path) -> Path:
    """A repository with two files in it, of which one has been touched since."""
    git(project, "init", "-q")
    (project / "code.py").write_text("print(1)\n")
    git(project, "add", "code.py", "precious.txt")
    git(project, "commit", "-qm", "first")
    os.utime(project / "code.py", (1, 1))
    return project


TRAP = f"sh -c 'touch {MARK}; cat'"


@pytest.mark.parametrize(
    "configured",
    [
        {"core.fsmonitor": TRAP},
        {"core.hooksPath": "hooks"},
        {"filter.trap.clean": TRAP},
        {"filter.trap.process": TRAP, "filter.trap.required": "true"},
        {"filter.trap.smudge": TRAP},
        {"filter.x=y.clean": TRAP},
        {"diff.external": TRAP},
        {"diff.trap.command": TRAP},
        {"diff.trap.textconv": TRAP},
        {"core.pager": TRAP, "pager.rev-parse": TRAP, "pager.ls-files": TRAP},
        {"alias.rev-parse": f"!{TRAP}", "alias.ls-files": f"!{TRAP}"},
        {"core.sshCommand": TRAP, "core.askPass": TRAP, "credential.helper": f"!{TRAP}"},
        {"extensions.partialClone": "origin", "remote.origin.promisor": "true", "core.repositoryFormatVersion": "1",
         "remote.origin.url": f"ext::sh -c touch% {MARK}", "protocol.ext.allow": "always"},
    ],
    ids=str,
)  # fmt: skip
def test_a_repositorys_configuration_runs_nothing(configured: dict[str, str], repository: Path) -> None:
    from workbench.revision import revision

    clean = revision()
    for key, value in configured.items():
        git(repository, "config", key, value)
    (repository / ".gitattributes").write_text("* filter=trap diff=trap\ncode.py filter=x=y\n")
    for folder in (repository / "hooks", repository / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction", "pre-commit"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {repository / MARK}\n")
            (folder / name).chmod(0o755)
    if "extensions.partialClone" in configured:
        for path in [p for p in (repository / ".git" / "objects").rglob("*") if p.is_file()]:
            path.unlink()
        revision()  # what it says of a repository without its objects does not matter
    else:
        assert revision() == clean
    assert not (repository / MARK).exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_EXTERNAL_DIFF": TRAP},
        {"GIT_PAGER": TRAP},
        {"GIT_DIR": "elsewhere"},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": TRAP},
        {"GIT_CONFIG_PARAMETERS": f"'core.fsmonitor'='{TRAP}'"},
        {"GIT_EXEC_PATH": "hooks"},
        {"GIT_SSH_COMMAND": TRAP, "GIT_ASKPASS": TRAP},
        {"GIT_TRACE": MARK},
        {"GIT_INDEX_FILE": MARK},
    ],
    ids=str,
)
def test_the_environment_does_not_steer_git(
    variables: dict[str, str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.revision import revision

    clean = revision()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert revision() == clean
    assert not (repository / MARK).exists()


def test_a_bare_repository_in_the_current_folder_is_not_asked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.revision import revision

    git(project, "init", "-q", "--bare", "bare")
    monkeypatch.chdir(project / "bare")
    git(project / "bare", "config", "core.fsmonitor", TRAP)
    assert revision() is None
    assert not (project / "bare" / MARK).exists()


def test_the_revision_says_whether_a_tracked_file_differs(repository: Path) -> None:
    from workbench.revision import revision

    clean = revision()
    assert clean is not None
    assert len(clean) == 12
    (repository / "untracked.txt").write_text("x")
    assert revision() == clean
    (repository / "code.py").write_text("print(2)\n")
    assert revision() == f"{clean}-dirty"
    git(repository, "checkout", "-q", "code.py")
    assert revision() == clean
    (repository / "code.py").unlink()
    assert revision() == f"{clean}-dirty"
    git(repository, "checkout", "-q", "code.py")
    git(repository, "rm", "-q", "--cached", "code.py")
    assert revision() == f"{clean}-dirty"


SCORING = f"""\
import pathlib
pathlib.Path({MARK!r}).touch()
def close_enough(expected, answer):
    return {{"near": 1.0, "polite": 0.0}}
close_enough.metrics = ["near", "polite"]
def plain(expected, answer):
    return 1.0
computed = plain
"""


@pytest.mark.parametrize(
    ("named", "decides"),
    [("scoring.py:close_enough", "near"), ("file:scoring.py:close_enough", "near"), ("scoring.py:plain", "score"),
     ("scoring.py:computed", "first metric"), ("trap_package.inner.deep:score", "score")],
)  # fmt: skip
def test_plan_reads_the_scoring_function_and_runs_nothing_of_it(
    named: str, decides: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "scoring.py").write_text(SCORING)
    inner = project / "path" / "trap_package" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text(f"open({MARK!r}, 'w')")
    (inner / "deep.py").write_text(f"open({MARK!r}, 'w')\ndef score(expected, answer): return 1\n")
    monkeypatch.syspath_prepend(project / "path")
    words = ["plan", "recipe=./mine.yaml", "evaluate.scorer=python", f"evaluate.function={named}"]
    assert door.main(words) == 0
    assert decides in capsys.readouterr().out
    assert_untouched(project)


@pytest.mark.parametrize(
    ("named", "said"),
    [("scoring.py:nearly", "has no nearly"), ("missing.py:f", "no file"), ("broken.py:f", "cannot be read"),
     ("scoring.py:pathlib.Path", "names no function"), ("no_such_module.at:f", "no module")],
)  # fmt: skip
def test_plan_says_what_is_wrong_with_a_scoring_function_without_running_it(
    named: str, said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "scoring.py").write_text(SCORING)
    (project / "broken.py").write_text(f"open({MARK!r}, 'w')\ndef f(:\n")
    words = ["plan", "recipe=./mine.yaml", "evaluate.scorer=python", f"evaluate.function={named}"]
    assert door.main(words) == 2
    assert said in capsys.readouterr().err
    assert_untouched(project)


def test_a_scoring_file_may_import_what_lies_beside_it(project: Path) -> None:
    from workbench.evaluation.scorers import score
    from workbench.recipe.schema import Evaluate

    (project / "rules_beside.py").write_text("LIMIT = 0.5\n")
    (project / "scoring.py").write_text("import rules_beside\ndef f(a, b): return rules_beside.LIMIT\n")
    before = list(sys.path)
    assert score(Evaluate(scorer="python", function="scoring.py:f"), "a", "b") == {"score": 0.5}
    assert sys.path == before


def test_a_config_in_the_current_folder_does_not_say_where_energy_is_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecarbon = pytest.importorskip("codecarbon")
    from workbench.evaluation.resources import Spent, kilowatt_hours

    started: list[Any] = []
    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "start", lambda tracker: started.append(tracker))
    monkeypatch.setenv("HOME", str(project))
    for methods in ("output_methods = api,csv", "save_to_api = true\nsave_to_prometheus = true"):
        config = f"[codecarbon]\napi_endpoint = http://127.0.0.1:1\noutput_dir = {project}\n{methods}\n"
        (project / ".codecarbon.config").write_text(config)
        with kilowatt_hours(Spent()):
            pass
    assert [tracker._output_methods for tracker in started] == [[], []]
