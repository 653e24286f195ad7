"""Names that are paths or arms: refused at the door, and nothing outside a run's own folder is removed or replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from workbench import __main__ as door
from workbench.bundles.manifest import wrong_content
from workbench.errors import RequestError, WorkbenchError
from workbench.evaluation.pairing import gather
from workbench.files import remove
from workbench.names import ARMS, check_arm, check_name
from workbench.runs import Run, clear, open_run, stage
from workbench.stages.bundle import take_back

PATHS = (
    "../../../../precious", "..", ".", "../train", "student/../../train", "/etc", "/", "", " ", "a/b", "a\\b",
    "..\\..\\x", "a\nb", "\n", "a\0b", "a\x1b[2Jb", "a\u202eb", ".staging", ".old", "~", "~root", "-rf", "a..", "a ",
    "x'y", 'x"y', "a:b", "a*b", "a|b", "$HOME", "a;b", "\ud800", "\u200b", "x" * 121, "é" * 61,
)  # fmt: skip


# Names that look like another, or are another to some file system.
SPOOFED = (
    "\uff42\uff41\uff53\uff45", "\uff54eacher", "\u017ftudent", "\U0001d41b\U0001d41a\U0001d42c\U0001d41e",
    "base\ufe0f", "base\u034f", "q\u115f", "\u3164", "q\uffa0", "q\u180b", "q\U000e0100", "q\u200d", "q\u2060",
    "q\u00ad", "q\u200f", "q\u2066", "q\ufeff", "q\U000e0041",
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe in it, a run of another recipe, and beside it what nobody may touch."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("ten years of work")
    here = tmp_path / "work"
    (here / "experiments" / "other" / "0badcafe").mkdir(parents=True)
    (here / "experiments" / "other" / "0badcafe" / "run.json").write_text("{}")
    (here / "rows.csv").write_text("prompt,completion\n" + "".join(f"say {n},{n}\n" for n in range(40)))
    monkeypatch.chdir(here)
    return here


def recipe(**changes: object) -> str:
    """A recipe's text, with other sections put into it."""
    told = {
        "defaults": ["workbench", "_self_"],
        "model": {"source": "hf:nobody/nothing"},
        "data": {"train": "rows.csv"},
    }
    return yaml.safe_dump(told | changes, allow_unicode=True)


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; empty folders too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(capsys: pytest.CaptureFixture[str], project: Path, words: list[str], where: str) -> None:
    """A command ends with exit code 2, names the key, and has touched nothing."""
    before = everything(project.parent)
    assert door.main(words) == 2
    assert where in capsys.readouterr().err
    assert everything(project.parent) == before


@pytest.mark.parametrize(
    "name", [*PATHS, *ARMS, "Base", "STUDENT", "q8.general", "student.constrained", "a.b", *SPOOFED]
)
def test_a_format_is_not_called_by_a_path_or_by_an_arms_name(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "\ud800":
        with pytest.raises(RequestError):
            check_arm(name, "quantize")
        return
    (project / "mine.yaml").write_text(recipe(quantize={name: {"format": "w8a8"}}))
    refused(capsys, project, ["train", "recipe=./mine.yaml"], "quantize.")


@pytest.mark.parametrize(
    "other", ["Q\u00fc", "q\u00dc", "qu\u0308", "\uff51\u00fc", "\U0001d492\u00fc", "\u24e0\u00fc"]
)
def test_two_formats_do_not_differ_in_capitals_or_the_writing_of_a_letter_alone(
    other: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(recipe(quantize={"q\u00fc": {"format": "w8a8"}, other: {"format": "w8a8"}}))
    refused(capsys, project, ["train", "recipe=./mine.yaml"], "quantize")


@pytest.mark.parametrize("name", [*PATHS, "org/model"])
def test_a_registered_model_is_not_called_by_a_path(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "\ud800":
        with pytest.raises(RequestError):
            check_name(name, "tracking.registered_model")
        return
    (project / "mine.yaml").write_text(recipe(tracking={"registered_model": name}))
    refused(capsys, project, ["train", "recipe=./mine.yaml"], "tracking.registered_model")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[2J"])
def test_an_experiment_has_a_name_that_can_be_printed(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "mine.yaml").write_text(recipe(tracking={"experiment": name}))
    refused(capsys, project, ["train", "recipe=./mine.yaml"], "tracking.experiment")


@pytest.mark.parametrize(
    "stem",
    ["mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", "ledger.db-journal", "LEDGER.DB-WAL", "\uff52echecks",
     "egress.jsonl", "README.md", "mlflow-ui.log", "..", ".", ".verify", ".compare", ".sweeps",
     "mlartifacts", "MLartifacts", "mlflow.db", "ledger.db", "rechecks",
     "${oc.env:HOME}", "a\nb", "a\\b", "-m", "~", " x", "x "],
)  # fmt: skip
def test_a_recipes_file_is_not_called_by_what_lies_beside_the_runs(
    stem: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / f"{stem}.yaml").write_text(recipe())
    refused(capsys, project, ["train", f"recipe=./{stem}.yaml"], "recipe")


@pytest.mark.parametrize(
    "name", ["mein modell", "größe", "gro\u0308ße", "legal.v2", "日本語", "हिन्दी", "a-b_c+d", "x (2)", "3b", "x" * 120]
)
def test_a_recipe_may_be_called_by_words_of_any_script(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / f"{name}.yaml").write_text(recipe())
    assert door.main(["plan", f"recipe=./{name}.yaml", "output=json"]) == 0
    assert f"/{name}/" in json.loads(capsys.readouterr().out)["run"]["folder"]


def test_shipped_names_of_formats_and_models_are_allowed(project: Path) -> None:
    for noun in sorted((Path(door.__file__).parents[2] / "configs" / "quantize").glob("*.yaml")):
        check_arm(noun.stem, "quantize")
    for name in ("Llama-3.2-1B-mine", "legal_lora-gguf_q8_0", "team.models.legal"):
        check_name(name, "tracking.registered_model")


def new_run(project: Path) -> Run:
    """A run with a finished stage."""
    with open_run(project / "experiments", "mine", "12345678", {}, fresh=False) as run:
        with stage(run, "train", "f") as staging:
            (staging.folder / "model").write_text("weights")
        return run


@pytest.mark.parametrize(
    "name", [p for p in PATHS if p != "\ud800" and p not in ("a/b",)] + ["quantize/../../../other"]
)
def test_a_stage_of_such_a_name_never_starts(name: str, project: Path) -> None:
    run = new_run(project)
    before = everything(project.parent)
    with pytest.raises(WorkbenchError), stage(run, f"quantize/{name}", "f"):
        pass
    assert everything(project.parent) == before


@pytest.mark.parametrize(
    "name", ["bundle/../../../other", "bundle/../../../../../precious", "bundle/../train", "bundle/.."]
)
def test_a_changed_run_json_takes_back_nothing_that_is_no_bundle(name: str, project: Path) -> None:
    run = new_run(project)
    manifest = run.manifest()
    manifest["stages"][name] = {}
    (run.folder / "run.json").write_text(json.dumps(manifest))
    before = {k: v for k, v in everything(project.parent).items() if not k.endswith(("run.json", "events.jsonl"))}
    with pytest.raises(WorkbenchError, match="not inside"):
        take_back(run, [])
    assert {k: v for k, v in everything(project.parent).items() if k in before} == before


def test_the_remover_follows_no_link_out_of_the_run(project: Path) -> None:
    run = new_run(project)
    precious = project.parent / "precious"
    (run.folder / "quantize").symlink_to(precious.parent)
    (run.folder / "link").symlink_to(precious)
    (run.folder / "file").symlink_to(precious / "thesis.txt")
    before = everything(precious)
    outside = (run.folder / "quantize" / "precious", precious, run.folder, run.folder.parent, project, Path("/"),
               run.folder / ".." / "12345678" / "train")  # fmt: skip
    for path in outside:
        with pytest.raises(WorkbenchError, match="not inside"):
            remove(path, run.folder)
    with pytest.raises(WorkbenchError, match="not inside"), stage(run, "quantize/precious", "f"):
        pass
    remove(run.folder / "link", run.folder)
    remove(run.folder / "file", run.folder)
    assert not (run.folder / "link").is_symlink()
    assert everything(precious) == before


def test_a_run_that_is_cleared_loses_its_links_and_not_what_they_point_to(project: Path) -> None:
    run = new_run(project)
    (run.folder / "data").symlink_to(project.parent / "precious")
    clear(run.folder)
    assert sorted(p.name for p in run.folder.iterdir()) == [".lock"]
    assert (project.parent / "precious" / "thesis.txt").is_file()


def test_a_run_that_lies_behind_a_link_works_as_any_other(project: Path) -> None:
    (project.parent / "disk").mkdir()
    (project / "far").symlink_to(project.parent / "disk")
    with open_run(project / "far", "mine", "12345678", {}, fresh=True) as run:
        for _ in range(2):
            with stage(run, "train", "f") as staging:
                (staging.folder / "model").write_text("weights")
    assert (project.parent / "disk" / "mine" / "12345678" / "train" / "model").is_file()


@pytest.mark.parametrize("key", ["name", "digest"])
def test_a_bundles_manifest_gives_no_path_for_a_name(key: str) -> None:
    content = {"schema": 1, "name": "n", "kind": "merged", "format": "f", "recipe": "r", "run": "r", "digest": "d",
               "template_sha256": "", "stop_ids": [1], "stop_tokens": [], "weights": [], "made": "",
               "files": {"a": {"sha256": "", "bytes": 1}}}  # fmt: skip
    assert wrong_content(content) is None
    assert "cannot be a name" in str(wrong_content(content | {key: "../../precious"}))


def test_a_report_with_a_path_for_an_arm_is_not_compared(project: Path) -> None:
    folders = []
    for number in (1, 2):
        folder = project / "experiments" / "mine" / str(number)
        (folder / "evaluate").mkdir(parents=True)
        report = {"scorer": "exact_match", "fields": [], "arms": {"../../../../../precious/thesis": {}}}
        (folder / "evaluate" / "report.json").write_text(json.dumps(report))
        folders.append(folder)
    with pytest.raises(RequestError, match="cannot be a name"):
        gather(folders)


@pytest.mark.parametrize("name", ["../../precious", "/etc", "other/..", "..", "*"])
def test_compare_finds_no_run_by_a_path(name: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "experiments" / "other" / "0badcafe" / "run.json").write_text('{"stages": {}}')
    refused(capsys, project, ["compare", f"runs={name},{name}x"], "runs")
