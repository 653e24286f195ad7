"""No alias stays on bytes that are not proven, and nothing from the registry is believed for its own tags' sake."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tracking_runs import SHIPPED, HandMade, new_experiments, whole_run
from workbench.bundles.manifest import sign
from workbench.errors import WorkbenchError
from workbench.recipe import Tracking
from workbench.signing_keys import TRUSTED, keys_folder, make_key, public_key_of
from workbench.tracking import register, resolve_source, store_uri
from workbench.tracking.store import connect
from workbench.tracking.versions import fetch_champion, find_champion, folder_digest


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store in the folder that a source without a recipe is looked for in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_experiments(tmp_path / "experiments")


def one_run(experiments: Path, digest: str) -> HandMade:
    """A finished run whose weights are its own, and only whose student ships."""
    run = whole_run(experiments, digest)
    for name in ("merge/model", "bundle/student"):
        run.write(f"{name}/model.safetensors", f"merged weights of {digest}")
    run.done("merge", "merge/model")
    sign_again(run.folder / "bundle" / "student")
    run.done("bundle/student", "bundle/student")
    return run


def sign_again(folder: Path, key: Path | None = None) -> None:
    (folder / "signature.json").unlink(missing_ok=True)
    sign(folder, key or keys_folder() / "signing.pem")


def registered(experiments: Path, run: HandMade, *, passed: bool = True) -> list[str]:
    made = register(run.folder, Tracking(), experiments, passed=passed, shipped=["student"] if passed else [])
    return list(made["said"])


def aliases(experiments: Path) -> dict[str, int]:
    with connect(store_uri(Tracking(), experiments)) as client:
        found = client.search_registered_models("name = 'tiny'")
    return {alias: int(number) for alias, number in (found[0].aliases or {}).items()}


def stored(experiments: Path, number: int) -> Path:
    """Where the store keeps a version's files."""
    with connect(store_uri(Tracking(), experiments)) as client:
        return Path(client.get_model_version_download_uri("tiny", str(number)).removeprefix("file://"))


def tag(experiments: Path, number: int, **tags: str) -> None:
    with connect(store_uri(Tracking(), experiments)) as client:
        for key, value in tags.items():
            client.set_model_version_tag("tiny", str(number), key, value)


def change(experiments: Path, number: int, *, tag_too: bool) -> None:
    """Put other weights under a version, as who can write to the store may."""
    folder = stored(experiments, number)
    (folder / "model.safetensors").write_text("poisoned weights")
    if tag_too:
        tag(experiments, number, sha256=folder_digest(folder), verified="true", gate="passed")


BOTH = {"challenger": 1, "champion": 1}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["changed", "changed with its tag", "gone", "unsigned"])
def test_a_champion_whose_proof_fails_gives_its_aliases_back_to_the_last_proven_version(
    experiments: Path, fault: str
) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    second = one_run(experiments, "bbbbbbbb")
    registered(experiments, second)
    assert aliases(experiments) == {"challenger": 2, "champion": 2}
    if fault == "gone":
        shutil.rmtree(stored(experiments, 2))
    elif fault == "unsigned":
        (stored(experiments, 2) / "signature.json").unlink()
    else:
        change(experiments, 2, tag_too=fault != "changed")
    with pytest.raises(WorkbenchError, match=r"tiny version 2 is no longer champion.*version 1 is champion again"):
        registered(experiments, second)
    assert aliases(experiments) == BOTH
    said = registered(experiments, second)  # stored anew, and proven
    assert aliases(experiments) == {"challenger": 3, "champion": 3}
    assert said == ["tiny version 3 is now challenger", "tiny version 3 is now champion"]


@pytest.mark.slow
@pytest.mark.parametrize("tag_too", [False, True])
def test_an_earlier_version_that_does_not_stand_either_gets_no_alias(experiments: Path, tag_too: bool) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    second = one_run(experiments, "bbbbbbbb")
    registered(experiments, second)
    change(experiments, 1, tag_too=tag_too)
    change(experiments, 2, tag_too=False)
    with pytest.raises(WorkbenchError, match="no earlier version is proven, so nothing is champion now"):
        registered(experiments, second)
    assert aliases(experiments) == {}


@pytest.mark.slow
def test_champion_never_goes_back_to_a_version_that_the_gate_refused(experiments: Path) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"), passed=False)
    second = one_run(experiments, "bbbbbbbb")
    registered(experiments, second)
    change(experiments, 2, tag_too=False)
    with pytest.raises(WorkbenchError, match="nothing is champion now"):
        registered(experiments, second)
    assert aliases(experiments) == {}


@pytest.mark.slow
def test_an_alias_left_on_a_version_that_is_marked_unproven_is_taken_back_by_the_next_registration(
    experiments: Path,
) -> None:
    first = one_run(experiments, "aaaaaaaa")
    registered(experiments, first)
    registered(experiments, one_run(experiments, "bbbbbbbb"))
    tag(experiments, 2, verified="false")
    said = registered(experiments, first, passed=False)
    assert any("version 2 is no longer champion" in line for line in said)
    assert 2 not in aliases(experiments).values()


@pytest.mark.slow
def test_a_registration_killed_while_it_takes_aliases_back_leaves_none_on_unproven_bytes(experiments: Path) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    second = one_run(experiments, "bbbbbbbb")
    registered(experiments, second)
    change(experiments, 2, tag_too=False)
    program = f"""
import os, signal
from pathlib import Path
from mlflow import MlflowClient
from workbench.recipe import Tracking
from workbench.tracking import register
def killed(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
real = MlflowClient.set_model_version_tag
def before_the_mark(self, name, version, key, value):
    killed() if (key, value) == ("verified", "false") else real(self, name, version, key, value)
MlflowClient.set_model_version_tag = before_the_mark
register(Path({str(second.folder)!r}), Tracking(), Path({str(experiments)!r}), passed=True, shipped=["student"])
"""
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert aliases(experiments) == BOTH


def test_a_deleted_champion_is_registered_anew(experiments: Path) -> None:
    run = one_run(experiments, "aaaaaaaa")
    registered(experiments, run)
    with connect(store_uri(Tracking(), experiments)) as client:
        client.delete_model_version("tiny", "1")
    registered(experiments, run)
    assert aliases(experiments) == {"challenger": 2, "champion": 2}


@pytest.mark.parametrize("source", ["mlflow:models:/tiny@champion", "mlflow:models:/tiny/1"])
def test_bytes_changed_together_with_their_tag_are_no_source(experiments: Path, tmp_path: Path, source: str) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    change(experiments, 1, tag_too=True)
    with pytest.raises(WorkbenchError, match="nothing outside the registry vouches") as refusal:
        resolve_source(source, tmp_path / "into")
    assert refusal.value.exit_code == 1
    assert TRUSTED in refusal.value.remedy
    found = find_champion(Tracking(), experiments, "tiny")
    assert found
    with pytest.raises(WorkbenchError, match="nothing outside the registry vouches"):
        fetch_champion(Tracking(), experiments, found, tmp_path / "fetched")
    with pytest.raises(WorkbenchError, match="nothing outside the registry vouches"):  # now they lie there already
        fetch_champion(Tracking(), experiments, found, tmp_path / "fetched")


@pytest.mark.slow
def test_a_signed_bundle_is_a_source_without_its_run_and_an_unsigned_version_is_not(
    experiments: Path, tmp_path: Path
) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    registered(experiments, one_run(experiments, "bbbbbbbb"), passed=False)
    assert aliases(experiments) == BOTH
    resolve_source("mlflow:models:/tiny/2", tmp_path / "with its run")
    for run in ("aaaaaaaa", "bbbbbbbb"):
        shutil.rmtree(experiments / "tiny" / run)
    resolve_source("mlflow:models:/tiny@champion", tmp_path / "signed")
    with pytest.raises(WorkbenchError, match="they are not signed"):
        resolve_source("mlflow:models:/tiny/2", tmp_path / "unsigned")


def test_a_signed_bundle_of_another_model_cannot_stand_in(experiments: Path, tmp_path: Path) -> None:
    run = whole_run(experiments)
    register(run.folder, Tracking(), experiments, passed=True, shipped=SHIPPED)
    folder = stored(experiments, 1)
    shutil.rmtree(folder)
    shutil.copytree(run.folder / "bundle" / "gguf_q8_0", folder)
    tag(experiments, 1, sha256=folder_digest(folder))
    with pytest.raises(WorkbenchError, match="signed bundle of another model, 'tiny-gguf_q8_0'"):
        resolve_source("mlflow:models:/tiny@champion", tmp_path / "into")


def test_a_bundle_of_another_maker_is_a_source_once_their_key_is_trusted(experiments: Path, tmp_path: Path) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    folder, key = stored(experiments, 1), tmp_path / "theirs.pem"
    make_key(key)
    (folder / "model.safetensors").write_text("their weights")
    sign_again(folder, key)
    tag(experiments, 1, sha256=folder_digest(folder))
    with pytest.raises(WorkbenchError, match="which is not trusted here"):
        resolve_source("mlflow:models:/tiny@champion", tmp_path / "before")
    resolve_source("mlflow:models:/tiny@champion", tmp_path / "named", public_key_of(key))
    trusted = keys_folder() / TRUSTED / "theirs.pub.pem"
    trusted.parent.mkdir(exist_ok=True)
    try:
        shutil.copy(public_key_of(key), trusted)
        resolve_source("mlflow:models:/tiny@champion", tmp_path / "after")
    finally:
        trusted.unlink()


def test_a_signature_that_only_names_a_trusted_key_is_refused(experiments: Path, tmp_path: Path) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    folder, key = stored(experiments, 1), tmp_path / "theirs.pem"
    own = json.loads((folder / "signature.json").read_text())["verificationMaterial"]["publicKey"]["hint"]
    make_key(key)
    sign_again(folder, key)
    forged = json.loads((folder / "signature.json").read_text())
    forged["verificationMaterial"]["publicKey"]["hint"] = own
    (folder / "signature.json").write_text(json.dumps(forged))
    tag(experiments, 1, sha256=folder_digest(folder))
    with pytest.raises(WorkbenchError, match="the signature is another file's"):
        resolve_source("mlflow:models:/tiny@champion", tmp_path / "into")


@pytest.mark.parametrize("location", ["file:///dev/zero", "file:///dev", "/dev/zero"])
def test_a_registry_that_names_a_device_is_refused_before_it_is_read(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    from mlflow import MlflowClient

    registered(experiments, one_run(experiments, "aaaaaaaa"))
    monkeypatch.setattr(MlflowClient, "get_model_version_download_uri", lambda *_: location)
    with pytest.raises(WorkbenchError, match="no plain file"):
        resolve_source("mlflow:models:/tiny@champion", tmp_path / "into")


def test_a_manifest_that_others_can_write_vouches_for_nothing(experiments: Path, tmp_path: Path) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"), passed=False)
    resolve_source("mlflow:models:/tiny/1", tmp_path / "as it was registered")
    change(experiments, 1, tag_too=True)
    poisoned = folder_digest(stored(experiments, 1))
    run = experiments / "tiny" / "aaaaaaaa"
    manifest = json.loads((run / "run.json").read_text())
    for made in manifest["stages"]["merge"]["artefacts"]:
        made["sha256"] = poisoned
    (run / "run.json").write_text(json.dumps(manifest))
    statements = json.loads((run / "vouched.json").read_text())
    for name, value in (("as they are", statements), ("renamed", [s | {"sha256": poisoned} for s in statements])):
        (run / "vouched.json").write_text(json.dumps(value))
        with pytest.raises(WorkbenchError, match="nothing outside the registry vouches"):
            resolve_source("mlflow:models:/tiny/1", tmp_path / name)


def test_a_champion_that_was_set_back_to_an_older_signed_version_is_said_aloud(
    experiments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(experiments, one_run(experiments, "aaaaaaaa"))
    registered(experiments, one_run(experiments, "bbbbbbbb"))
    resolve_source("mlflow:models:/tiny@champion", tmp_path / "two")
    assert "set back" not in capsys.readouterr().err
    with connect(store_uri(Tracking(), experiments)) as client:
        client.set_registered_model_alias("tiny", "champion", "1")
    resolve_source("mlflow:models:/tiny@champion", tmp_path / "one")
    assert "tiny@champion is version 1, and version 2 was made champion here last" in capsys.readouterr().err
