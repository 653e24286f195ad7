"""Registering: linked, proven by download before any alias moves, once however often, and fit to be loaded again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tracking_runs import SHIPPED, new_experiments, whole_run
from workbench.errors import RequestError, WorkbenchError
from workbench.files import artefact
from workbench.recipe import Tracking
from workbench.tracking import register, resolve_source, store_uri
from workbench.tracking.store import connect, plain_name
from workbench.tracking.versions import download


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    return new_experiments(tmp_path / "experiments")


def registry(experiments: Path) -> dict[str, tuple[int, dict[str, str]]]:
    """Registered model → how many versions it has, and its aliases."""
    with connect(store_uri(Tracking(), experiments)) as client:
        return {
            model.name: (len(client.search_model_versions(f"name = '{model.name}'")), dict(model.aliases or {}))
            for model in client.search_registered_models()
        }


def models(experiments: Path) -> dict[str, Any]:
    """Every LoggedModel by name; fails when two share one."""
    with connect(store_uri(Tracking(), experiments)) as client:
        found = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    assert len({m.name for m in found}) == len(found)
    return {model.name: model for model in found}


def test_the_student_and_its_shipped_formats_become_linked_and_proven_versions(experiments: Path) -> None:
    run = whole_run(experiments)
    made = register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    both = {"challenger": 1, "champion": 1}
    assert {n: (c, {k: int(v) for k, v in a.items()}) for n, (c, a) in registry(experiments).items()} == {
        "tiny": (1, both), "tiny-gguf_q8_0": (1, both)
    }  # fmt: skip
    assert made["versions"] == {"tiny": "1", "tiny-gguf_q8_0": "1"}
    assert made["refused"] == ["gguf_q4_k_m"]
    there = models(experiments)
    adapter, merged, q8, q4 = (there[f"tiny-{n}"] for n in ("adapter", "merged", "gguf_q8_0", "gguf_q4_k_m"))
    assert merged.tags["parent_model_id"] == adapter.model_id
    assert q8.tags["parent_model_id"] == merged.model_id
    assert q8.params["sha256"] == run.manifest["stages"]["bundle/gguf_q8_0"]["artefacts"][0]["sha256"]
    assert (q8.tags["gate"], str(q8.status)) == ("passed", "READY")
    assert (q4.tags["gate"], q4.tags["weights"], str(q4.status)) == ("refused", "in the run folder", "FAILED")
    assert {m.key: m.value for m in q4.metrics}["category_accuracy"] == 0.60
    with connect(store_uri(Tracking(), experiments)) as client:
        version = client.get_model_version_by_alias("tiny", "champion")
        source = client.get_run(merged.source_run_id)
    assert source.info.run_name == "merge"
    assert [m.model_id for m in source.inputs.model_inputs] == [adapter.model_id]
    expected = {
        "recipe": "tiny", "digest": "0badcafe", "git": "a3c0800", "gate": "passed", "base_licence": "Apache-2.0",
        "base_source": "pypi:some-model==1.0!model.gguf", "data.training": f"{'a' * 64} (7 rows)", "verified": "true",
        "metric.category_accuracy": "0.685 [0.645, 0.725]",
    }  # fmt: skip
    assert {k: version.tags.get(k) for k in expected} == expected


@pytest.mark.slow
def test_registering_again_changes_nothing(experiments: Path) -> None:
    run = whole_run(experiments)
    first = register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    again = register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    assert again == first | {"said": []}
    assert json.loads(json.dumps(again)) == again, "it goes into run.json"
    assert {name: count for name, (count, _) in registry(experiments).items()} == {"tiny": 1, "tiny-gguf_q8_0": 1}
    assert len(models(experiments)) == 4


def test_what_the_gate_refuses_is_a_version_without_an_alias(experiments: Path) -> None:
    run = whole_run(experiments)
    made = register(run.folder, Tracking(), experiments, passed=False, shipped=[])
    assert registry(experiments) == {"tiny": (1, {})}
    assert made["aliases"] == {"tiny": []}
    assert "tiny version 1 has no alias: the gate refuses it" in made["said"]


def test_a_champion_that_is_judged_again_and_refused_loses_its_aliases(experiments: Path) -> None:
    run = whole_run(experiments)
    register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    made = register(run.folder, Tracking(), experiments, passed=False, shipped=[])
    left = {name: set(aliases) for name, (_, aliases) in registry(experiments).items()}
    assert left == {"tiny": set(), "tiny-gguf_q8_0": set()}
    assert "tiny version 1 is no longer champion: the gate refuses it" in made["said"]


def test_a_refused_run_leaves_the_champion_of_another_run_alone(experiments: Path) -> None:
    register(whole_run(experiments).folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    other = whole_run(experiments, digest="1badcafe")
    register(other.folder, Tracking(), experiments, passed=False, shipped=[])
    aliases = registry(experiments)["tiny"][1]
    assert (int(aliases["champion"]), int(aliases["challenger"])) == (1, 1)


@pytest.mark.slow
def test_a_copy_damaged_in_the_store_gets_no_alias_and_is_stored_anew_next_time(experiments: Path) -> None:
    run = whole_run(experiments)

    def damage_then_download(uri: str, location: str, into: Path) -> Path:
        stored = Path(location.removeprefix("file://")) / "model.safetensors"
        stored.write_bytes(stored.read_bytes().replace(b"weights", b"Weights"))
        return download(uri, location, into)

    with pytest.raises(WorkbenchError, match="other bytes"):
        register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED, download=damage_then_download)
    assert registry(experiments) == {"tiny": (1, {})}
    register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    count, aliases = registry(experiments)["tiny"]
    assert (count, int(aliases["champion"])) == (2, 2)


def test_what_ships_without_a_bundle_is_not_registered(experiments: Path) -> None:
    run = whole_run(experiments)
    del run.manifest["stages"]["bundle/student"]
    run.save()
    with pytest.raises(RequestError, match="no engine has loaded its bundle"):
        register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    assert registry(experiments) == {}


def test_a_version_that_does_not_stand_after_download_gets_no_alias(experiments: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "MANIFEST.json").is_file()
        raise WorkbenchError("signature: not signed")

    with pytest.raises(WorkbenchError, match="not signed"):
        register(whole_run(experiments).folder, Tracking(), experiments, passed=True, shipped=SHIPPED, verify=refuse)
    assert registry(experiments) == {"tiny": (1, {})}


def test_a_run_folder_damaged_after_its_stage_is_not_registered(experiments: Path) -> None:
    run = whole_run(experiments)
    run.write("bundle/student/model.safetensors", b"merged Weights")
    with pytest.raises(WorkbenchError, match="not the ones the stage made"):
        register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    assert registry(experiments) == {}


@pytest.mark.slow
@pytest.mark.parametrize("dies_in", ["log_model_artifacts", "create_model_version"])
def test_a_registration_killed_midway_goes_on_without_doubling(experiments: Path, dies_in: str) -> None:
    run = whole_run(experiments)
    program = f"""
import os, signal
from pathlib import Path
from mlflow import MlflowClient
from workbench.recipe import Tracking
from workbench.tracking import register
real = MlflowClient.{dies_in}
def once_done(*args, **kwargs):  # the call's work is done, what should follow it is not
    real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.{dies_in} = once_done
register(Path({str(run.folder)!r}), Tracking(), Path({str(experiments)!r}), passed=True, shipped={SHIPPED!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    assert {n: (c, set(a)) for n, (c, a) in registry(experiments).items()} == {
        "tiny": (1, {"challenger", "champion"}), "tiny-gguf_q8_0": (1, {"challenger", "champion"})
    }  # fmt: skip
    assert {name: str(m.status) for name, m in models(experiments).items() if m.tags["weights"] == "stored"} == {
        "tiny-adapter": "READY", "tiny-merged": "READY", "tiny-gguf_q8_0": "READY"
    }  # fmt: skip


def test_a_registered_model_comes_back_by_alias_and_by_version(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_run(experiments)
    register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    monkeypatch.chdir(experiments.parent)
    for source in ("mlflow:models:/tiny@champion", "mlflow:models:/tiny/1"):
        into = tmp_path / source[-1]
        into.mkdir()
        assert resolve_source(source, into) == into
        assert artefact(into, into).sha256 == run.manifest["stages"]["bundle/student"]["artefacts"][0]["sha256"]


def test_a_registered_model_changed_in_the_store_is_refused(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(whole_run(experiments).folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    (stored,) = experiments.glob("mlartifacts/*/models/*/artifacts/tokenizer.json")
    stored.write_text('{"auto_map": 1}')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(Tracking(), experiments))
    with pytest.raises(WorkbenchError, match="other bytes"):
        resolve_source("mlflow:models:/tiny@champion", tmp_path / "into")


@pytest.mark.parametrize("source", ["mlflow:models:/nix@champion", "mlflow:models:/tiny@nix", "mlflow:models:/tiny/9",
                                    "mlflow:tiny"])  # fmt: skip
def test_a_source_that_cannot_be_found_is_the_requests_fault(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(Tracking(), experiments))
    with pytest.raises(RequestError):
        resolve_source(source, tmp_path / "into")


def test_names_that_mlflow_refuses_are_made_plain() -> None:
    assert plain_name("o'mine/v1.5:x%") == "o-mine-v1-5-x"


@pytest.mark.slow
def test_the_ui_serves_the_store_and_a_server_takes_a_whole_registration(tmp_path: Path) -> None:
    experiments = new_experiments(tmp_path / "experiments")
    whole_run(experiments)
    ui = subprocess.Popen([sys.executable, "-m", "workbench", "ui", f"experiments={experiments}", "port=5310"],
                          stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert ui.stderr
        said = []
        for line in ui.stderr:
            said.append(line)
            if line.startswith("open "):
                break
        assert "tiny/0badcafe: 5 new points\n" in said
        # The same server as a remote store: files go through it, and come back from it.
        remote = Tracking(uri=said[-1].split()[1].partition("/#")[0], experiment="over http", registered_model="remote")
        run = whole_run(tmp_path / "elsewhere", digest="2badcafe", model="remote")
        made = register(run.folder, remote, tmp_path / "elsewhere", passed=True, shipped=SHIPPED)
        assert made["aliases"]["remote"] == ["challenger", "champion"]
        assert registry(experiments)["remote"][0] == 1
    finally:
        ui.send_signal(signal.SIGINT)
        assert ui.wait(120) == 0
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(experiments).encode() in read(p)]
    assert not left, "a server was left behind"


def read(path: Path) -> bytes:
    """A file that may be gone by now."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
