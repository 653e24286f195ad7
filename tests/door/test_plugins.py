"""An installed package adds a scorer, a format or a source by its name alone, and a broken one is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from bundle_project import new_project, only_run, stages
from workbench.__main__ import main
from workbench.bundles.prove import choose_engine
from workbench.compress.format_check import really_quantized
from workbench.compress.preflight import write_format
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation import scorers
from workbench.evaluation.scorers import of_a_package
from workbench.formats import FORMATS, find_format, format_named
from workbench.recipe import Evaluate
from workbench.recipe.methods import kind_named
from workbench.sources.resolve import other_scheme

EXAMPLE = Path(__file__).parents[1] / "support" / "example_plugin"
GROUPS = ("scorers", "formats", "sources", "teachers", "methods")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are installed into."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr("workbench.extras.site_folders", lambda: [str(folder)])
    monkeypatch.syspath_prepend(str(folder))
    of_a_package.cache_clear()
    return folder


def installed(site: Path, name: str, code: str, points: dict[str, str]) -> None:
    """A package of one module, as pip leaves it, with entry points by `GROUP.NAME`."""
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    lines = [
        f"[workbench.{key.partition('.')[0]}]\n{key.partition('.')[2]} = {value}\n" for key, value in points.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))


def test_an_unknown_format_is_refused_at_the_door_with_the_nearest_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = new_project(tmp_path / "project", tiny_model, more="quantize: {small: {format: w4a61}}\n")
    monkeypatch.chdir(project)
    assert main(["plan", "recipe=./mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert "quantize.small.format" in error
    assert "did you mean 'w4a16'?" in error


def test_an_unknown_scorer_is_refused_at_the_door_before_any_hour_is_spent(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(new_project(tmp_path / "project", tiny_model))
    assert main(["train", "recipe=./mine.yaml", "evaluate.scorer=exactmatch"]) == 2
    assert "did you mean 'exact_match'?" in capsys.readouterr().err
    assert main(["train", "recipe=./mine.yaml", "teacher.gold_scorer=labels"]) == 2
    assert "teacher.gold_scorer" in capsys.readouterr().err
    assert not (Path("experiments")).exists()


def test_the_facts_of_every_format_are_read_without_torch() -> None:
    code = (
        "import sys; from workbench.formats import FORMATS; "
        "[f.function(part) for f in FORMATS.values() for part in ('write', 'check', 'fits') if getattr(f, part)]; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_noun_of_quantize_names_a_format_and_every_format_has_its_noun() -> None:
    nouns = (Path(__file__).parents[2] / "configs" / "quantize").glob("*.yaml")
    assert {noun.stem for noun in nouns} == set(FORMATS)


@pytest.mark.parametrize("group", GROUPS)
def test_a_package_that_cannot_be_imported_is_named_and_breaks_only_those_who_ask_for_it(
    site: Path, group: str
) -> None:
    installed(site, "broken_one", "import a_library_that_nobody_has\n", {f"{group}.mine": "broken_one:MINE"})
    with pytest.raises(RequestError, match=r"broken_one 2\.5 offers 'mine'.*a_library_that_nobody_has") as caught:
        ask_for(group)
    assert "uninstall broken_one 2.5" in caught.value.remedy
    assert format_named("w8a8").bits == 8
    assert scorers.find("label").closed(Evaluate(), ["b", "a"]).labels == ["a", "b"]


@pytest.mark.parametrize("group", GROUPS)
def test_a_package_that_offers_another_kind_of_thing_is_told_what_was_expected(site: Path, group: str) -> None:
    installed(site, "wrong_one", "MINE = 3\n", {f"{group}.mine": "wrong_one:MINE"})
    with pytest.raises(RequestError, match=r"wrong_one:MINE is a int where a .*(Scorer|Format|Callable|Kind) was"):
        ask_for(group)


def test_metadata_that_nobody_can_read_is_in_nobodys_way(site: Path) -> None:
    installed(site, "fine", "from workbench.formats import *\nMINE = FORMATS['w8a8']\n", {"formats.mine": "fine:MINE"})
    torn = site / "torn-1.0.dist-info"
    torn.mkdir()
    (torn / "entry_points.txt").write_text("[workbench.formats]\nno value here\n")
    assert format_named("mine").name == "mine"


def test_a_format_without_an_engine_or_with_a_writer_that_is_not_there_says_so(site: Path) -> None:
    code = "from workbench.formats import Format, Taker\nA = Format('a', 8, 1.0, (), 'x:y')\n"
    code += "B = Format('b', 8, 1.0, (Taker('vllm', 'any'),), 'no_such_module:write')\n"
    installed(site, "half_done", code, {"formats.a": "half_done:A", "formats.b": "half_done:B"})
    with pytest.raises(RequestError, match="names no engine that takes a"):
        format_named("a")
    with pytest.raises(RequestError, match="No module named 'no_such_module'"):
        format_named("b").function("write")
    assert find_format("c") is None


def test_a_packages_format_is_served_by_its_first_engine_and_by_none_that_does_not_take_it(
    site: Path, tmp_path: Path
) -> None:
    code = "from workbench.formats import Format, Taker\n"
    code += "MINE = Format('mine', 8, 1.0, (Taker('transformers', 'any'),), 'x:y')\n"
    installed(site, "fine_one", code, {"formats.mine": "fine_one:MINE"})
    assert choose_engine(tmp_path, "mine") == "transformers"
    with pytest.raises(RequestError, match="vllm does not take mine"):
        choose_engine(tmp_path, "mine", "vllm")
    assert really_quantized(tmp_path, "mine") == {}, "its package has no check: a bundle says so"


def test_a_writer_that_writes_no_weights_or_gives_no_facts_is_a_failure(site: Path, tmp_path: Path) -> None:
    code = "from workbench.formats import Format, Taker\nT = (Taker('transformers', 'any'),)\n"
    code += "def nothing(*_): return {}\ndef wrong(*_): return 'done'\n"
    code += "A = Format('a', 8, 1.0, T, 'lazy_one:nothing')\nB = Format('b', 8, 1.0, T, 'lazy_one:wrong')\n"
    installed(site, "lazy_one", code, {"formats.a": "lazy_one:A", "formats.b": "lazy_one:B"})
    with pytest.raises(WorkbenchError, match=r"no \.safetensors or \.gguf file was written"):
        write_format("a", tmp_path, tmp_path, [], rows=1, tokens=16)
    with pytest.raises(RequestError, match="lazy_one:wrong gave a str"):
        write_format("b", tmp_path, tmp_path, [], rows=1, tokens=16)


def test_a_packages_scorer_is_versioned_with_its_package_and_carries_its_own_facts(site: Path) -> None:
    code = "from workbench.evaluation.scorers import Scorer\n"
    code += "MINE = Scorer(lambda e: ['m'], lambda e, w, a: {'m': 1.0}, structured=True, handed_over=('m',), "
    code += "stays_behind=lambda e: 'a lexicon')\n"
    installed(site, "rich_one", code, {"scorers.mine": "rich_one:MINE"})
    from workbench.evaluation.answers import schema_of
    from workbench.evaluation.lm_eval import expressed

    evaluate = Evaluate(scorer="mine")
    assert scorers.version(evaluate) == "rich_one 2.5"
    assert schema_of(evaluate, ['{"a": 1}', '{"a": 2}']) is not None
    assert expressed(evaluate) == (["m"], [])
    assert scorers.portable(evaluate)[0].scorer == "exact_match"
    assert "a lexicon does not travel" in scorers.portable(evaluate)[1]


def ask_for(group: str) -> object:
    """What the package offers as `mine`, asked for as a recipe would."""
    if group == "teachers":
        return ask_for_teacher()
    ask = {"scorers": scorers.find, "formats": format_named, "methods": kind_named}
    return other_scheme("mine", "mine:x") if group == "sources" else ask[group]("mine")


def ask_for_teacher() -> object:
    """The client of a teacher whose API a package brings."""
    import asyncio

    from workbench.recipe import Teacher
    from workbench.teacher.client import open_client

    async def opened() -> object:
        async with open_client(Teacher(api="mine"), "", "http://127.0.0.1:1", None) as client:  # type: ignore[arg-type]
            return client

    return asyncio.run(opened())


@pytest.mark.slow
def test_the_example_package_goes_through_a_whole_life_by_its_names_alone(tmp_path: Path, tiny_model: Path) -> None:
    python = environment(tmp_path / "venv")
    package = shutil.copytree(EXAMPLE, tmp_path / "package")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--no-build-isolation", str(package)], check=True)
    project = new_project(tmp_path / "project", tiny_model, more="quantize: {half: {format: half}}\n")
    (project / "mine.csv").unlink()

    def workbench(*words: str) -> str:
        done = subprocess.run(
            [str(python), "-m", "workbench", *words], cwd=project, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    workbench("train", "recipe=./mine.yaml", "data.train=items:50", "evaluate.scorer=first_word")
    run = only_run(project)
    made = stages(run)
    assert {"quantize/half", "bundle/half", "register"} <= set(made)
    assert made["quantize/half"]["facts"]["bits_per_weight"] == 16
    assert made["quantize/half"]["facts"]["calibration_rows"] == 0
    report = json.loads((run / "evaluate" / "report.json").read_text())
    assert report["primary"] == "first_word"
    assert report["engines"]["half"] == "transformers"
    bundle = run / "bundle" / "half"
    assert json.loads((bundle / "MANIFEST.json").read_text())["scoring"]["scorer"] == "first_word"
    card = (bundle / "README.md").read_text()
    assert "(half)" in card
    assert "first word" in card.lower()
    checks = json.loads(workbench("verify", f"bundle={bundle}", "output=json"))["checks"]
    assert ("quantized", True, "half, 16 bits a weight") in [(c["name"], c["passed"], c["why"]) for c in checks]
    again = json.loads(workbench("evaluate", f"model={bundle}", "data=items:80", "output=json"))
    assert again["primary"] == "first_word"
    assert again["n"] > 0


def environment(folder: Path) -> Path:
    """A virtual environment that sees what this one has, and has a place of its own for packages; its python."""
    venv.create(folder, symlinks=True)
    (own,) = folder.glob("lib/python*/site-packages")
    here = [entry for entry in sys.path if entry.endswith("site-packages")]
    (own / "_shared.pth").write_text("".join(f"import site; site.addsitedir({entry!r})\n" for entry in here))
    return folder / "bin" / "python"


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page[page.index("## Plugins") : page.index("## What CI runs")]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.S)
    files = {"toml": "pyproject.toml", "python": "workbench_example.py"}
    assert {language for language, _ in blocks} == set(files)
    for language, block in blocks:
        assert block in (EXAMPLE / files[language]).read_text(encoding="utf-8")


def test_one_scorer_more_is_one_file_and_a_yaml(tmp_path: Path) -> None:
    tree = Path(__file__).parents[2]
    for name in ("src", "configs"):
        shutil.copytree(tree / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (tmp_path / "src/workbench/evaluation/scorers/exact_match.py").read_text()
    (tmp_path / "src/workbench/evaluation/scorers/to_the_letter.py").write_text(code)
    (tmp_path / "configs/evaluate/to_the_letter.yaml").write_text("name: to_the_letter\nscorer: to_the_letter\n")
    (tmp_path / "mine.csv").write_text("prompt,answer\na,b\n")
    recipe = (
        "defaults: [workbench, {model: smollm2_135m}, {evaluate: to_the_letter}, _self_]\ndata: {train: mine.csv}\n"
    )
    (tmp_path / "mine.yaml").write_text(recipe)
    asked = (
        "from workbench.compose import composed, find_recipe\nfrom workbench.recipe import read\n"
        "from workbench.evaluation import scorers\n"
        "recipe = read(composed(find_recipe('./mine.yaml'), []), 'mine')\n"
        "print(scorers.primary_metric(recipe.evaluate), scorers.deciding_score(recipe.evaluate, 'b', ' b'))\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("exact_match 1.0\n", 0), done.stderr
