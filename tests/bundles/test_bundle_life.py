"""Bundles through the public door, on a tiny random model: made, proven, registered, exported, taken back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bare_environment import run_bare
from bundle_project import new_project, only_run, stages
from workbench.__main__ import main
from workbench.bundles.manifest import read_manifest, sign, write_manifest
from workbench.recipe import Tracking
from workbench.signing_keys import signing_key
from workbench.tracking import store_uri
from workbench.tracking.store import connect


@pytest.fixture(scope="module")
def shipped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose student and adapter were bundled and registered, made once; copy what you change."""
    folder = new_project(tmp_path_factory.mktemp("shipped") / "project", tiny_model)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "recipe=./mine.yaml", "bundle.adapter=true", "debug=true"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the student's bundle, free to be spoiled."""
    return Path(shutil.copytree(only_run(shipped) / "bundle" / "student", tmp_path / "student"))


@pytest.fixture
def own_run(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a copy of the project, which is the current folder: free to be spoiled."""
    folder = Path(shutil.copytree(shipped, tmp_path / "changed"))
    monkeypatch.chdir(folder)
    return only_run(folder)


def resign(bundle: Path) -> None:
    """Make manifest and signature anew over what is there: a bundler's own fault, not a stranger's hand."""
    facts = {k: v for k, v in read_manifest(bundle).items() if k not in ("files", "schema")}
    (bundle / "MANIFEST.json").unlink()
    (bundle / "signature.json").unlink()
    write_manifest(bundle, facts)
    sign(bundle, signing_key())


def failed(bundle: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The names of the checks that `verify` says fail."""
    capsys.readouterr()
    code = main(["verify", f"bundle={bundle}", "output=json", *words])
    told = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in told["checks"] if not check["passed"]]
    assert (code, told["passed"]) == ((3, False) if names else (0, True))
    return names


@pytest.mark.slow
def test_what_ships_is_bundled_proven_signed_and_registered_as_the_very_same_bytes(shipped: Path) -> None:
    run = only_run(shipped)
    assert list(stages(run)) == ["train", "merge", "evaluate", "bundle/student", "bundle/adapter", "register"]
    student = run / "bundle" / "student"
    for name in (
        "model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json",
        "README.md", "NOTICE", "report.json", "recipe.yaml", "bom.cdx.json", "parity.json", "ENGINES.md",
        "serve_vllm.sh", "MANIFEST.json", "signature.json",
    ):  # fmt: skip
        assert (student / name).is_file(), name
    facts = stages(run)["bundle/student"]["facts"]
    assert facts["engine"] in ("transformers", "vllm")
    assert facts["parity"]["prompts_equal"] == 4
    assert facts["parity"]["kl_mean"] < 0.01
    assert (run / "bundle" / "adapter" / "adapter_model.safetensors").is_file()
    with connect(store_uri(Tracking(), shipped / "experiments")) as client:
        version = client.get_model_version_by_alias("mine", "champion")
    assert version.tags["sha256"] == stages(run)["bundle/student"]["artefacts"][0]["sha256"]


@pytest.mark.slow
def test_the_same_command_again_has_nothing_left_to_do(shipped: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(shipped)
    assert main(["train", "recipe=./mine.yaml", "bundle.adapter=true"]) == 0
    assert "nothing left to do" in capfd.readouterr().err


@pytest.mark.slow
def test_a_student_that_has_changed_since_it_was_made_is_neither_judged_nor_bundled(
    own_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = own_run / "merge" / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = stages(own_run)
    for words in (["bundle", "bundle.parity_rows=3", "bundle.adapter=true"], ["evaluate", "evaluate.confidence=0.9"]):
        assert main([*words, "recipe=./mine.yaml"]) == 1
        assert f"{weights.parent}: these files are not the ones the stage made" in capfd.readouterr().err
    assert stages(own_run) == before


@pytest.mark.slow
def test_a_verdict_that_was_written_by_hand_lets_nothing_ship(own_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = own_run / "evaluate" / "report.json"
    report = json.loads(path.read_text())
    report["gate"] |= {"passed": True, "shipped": ["student", "small"]}
    path.write_text(json.dumps(report))
    before = stages(own_run)
    for verb in ("bundle", "register"):
        assert main([verb, "bundle.adapter=true", "recipe=./mine.yaml"]) == 1
        assert f"{path}: this is not the report that the evaluation wrote" in capfd.readouterr().err
    assert stages(own_run) == before


@pytest.mark.slow
def test_verify_finds_a_sound_bundle_sound_in_its_engine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(bundle, capsys) == []


@pytest.mark.slow
def test_an_adapter_merged_once_more_at_a_wrong_scale_is_caught_by_its_kl(
    bundle: Path, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bundle), str(only_run(shipped) / "train" / "adapter")
    )
    for name, weight in adapter.named_parameters():  # with its own sign a student that says one thing says it louder
        weight.data *= -300 if "lora_B" in name else 1
    adapter.merge_and_unload().save_pretrained(bundle)
    resign(bundle)
    assert failed(bundle, capsys) == ["kl"]


@pytest.mark.slow
def test_another_template_a_lost_stop_and_a_flipped_byte_are_named(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = bundle / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert set(failed(bundle, capsys)) == {"files", "signature", "loads"}
    weights.write_bytes(sound)
    template = bundle / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("assistant\n", "assistant: "))
    resign(bundle)
    assert "template" in failed(bundle, capsys)
    assert "prompt_ids" in failed(bundle, capsys)
    template.write_text(text)
    config = json.loads((bundle / "generation_config.json").read_text())
    (bundle / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
    resign(bundle)
    assert failed(bundle, capsys, "engine=none") == ["stop_tokens"]


@pytest.mark.slow
def test_a_bundle_signed_by_a_stranger_is_refused_by_every_verb_until_his_key_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = signing_key(tmp_path / "stranger")
    (bundle / "signature.json").unlink()
    sign(bundle, key)
    assert failed(bundle, capsys, "engine=none") == ["signature"]
    assert main(["serve", f"bundle={bundle}"]) == 3
    assert main(["export", f"from={bundle}", f"to={tmp_path / 'out'}"]) == 3
    assert not (tmp_path / "out").exists()
    assert failed(bundle, capsys, "engine=none", f"key={key.with_suffix('.pub.pem')}") == []


@pytest.mark.slow
def test_export_from_the_registry_gives_the_very_same_bytes_in_a_fresh_folder(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(Tracking(), shipped / "experiments"))
    assert main(["export", "from=models:/mine@champion", "to=out"]) == 0
    source = only_run(shipped) / "bundle" / "student"
    names = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert all((source / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)
    assert failed(tmp_path / "out", capsys, "engine=none") == []


@pytest.mark.slow
def test_the_bare_package_verifies_compares_and_exports_what_the_whole_one_made(
    shipped: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood = run_bare("verify", f"bundle={bundle}", "engine=none", folder=tmp_path)
    assert stood.returncode == 0, stood.stdout + stood.stderr
    asked = run_bare("verify", f"bundle={bundle}", folder=tmp_path)
    assert (asked.returncode, "pip install 'llm-workbench[train]'" in asked.stderr) == (2, True), asked.stderr
    assert run_bare("export", f"from={bundle}", "to=by_folder", folder=tmp_path).returncode == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(Tracking(), shipped / "experiments"))
    registered = run_bare("export", "from=models:/mine@champion", "to=by_name", folder=tmp_path)
    assert registered.returncode == 0, registered.stderr
    assert [p.read_bytes() for p in sorted((tmp_path / "by_name").glob("*.*"))] == [
        p.read_bytes() for p in sorted((tmp_path / "by_folder").glob("*.*"))
    ]
    run = only_run(shipped)
    for name in ("one", "other"):
        shutil.copytree(run, tmp_path / "experiments" / name / run.name)
    compared = run_bare("compare", "runs=one,other", "output=json", folder=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["comparisons"]


@pytest.mark.slow
def test_words_that_name_nothing_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["verify"], ["serve"], ["export"], ["verify", f"bundle={tmp_path}"], ["serve", "bundle=nowhere"],
                  ["export", "from=models:/x@y"], ["serve", "bundel=x"]):  # fmt: skip
        assert main(words) == 2, words
        assert "→" in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_gate_no_longer_lets_ship_is_taken_back(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(new_project(tmp_path, tiny_model, privacy="internal"))
    assert main(["train", "recipe=./mine.yaml", "until=bundle"]) == 0
    run = only_run(tmp_path)
    assert not (run / "bundle" / "student" / "parity.json").exists(), "held-out rows that are not public stay"
    assert (run / "bundle" / "student.parity.json").is_file()
    assert not (run / "evaluate" / "prompts.json").exists(), "as do their prompts"
    assert main(["train", "recipe=./mine.yaml", "until=bundle", "gate.better_by=0.9"]) == 3
    assert "bundle/student" not in stages(run)
    assert not (run / "bundle" / "student").exists()


@pytest.mark.slow
def test_a_parity_that_fails_leaves_no_bundle_and_registers_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(new_project(tmp_path, tiny_model))
    monkeypatch.setattr("workbench.stages.bundle.ask_engine", spoiled)
    assert main(["train", "recipe=./mine.yaml"]) == 3
    assert "stop token" in capfd.readouterr().err
    run = only_run(tmp_path)
    assert list(stages(run)) == ["train", "merge", "evaluate"]
    assert not (run / "bundle" / "student").exists()


def spoiled(*_args: object, **_kwargs: object) -> tuple[None, list]:
    """An engine whose answers do not stop."""
    from workbench.bundles.checks import Check

    return None, [Check("stops", False, "no stop token was heard")]


KILLED = textwrap.dedent(
    """
    import os, sys
    from workbench import runs
    from workbench.__main__ import main
    calls, point = 0, int(sys.argv[1])
    def dying(function):
        def wrapped(*a, **k):
            global calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), 9)
            return function(*a, **k)
        return wrapped
    import shutil, torch, transformers, peft, mlflow
    for module, name in ((os, "replace"), (os, "fsync"), (shutil, "copyfile"), (shutil, "rmtree")):
        setattr(module, name, dying(getattr(module, name)))
    code = main(["train", "recipe=./mine.yaml"])
    print("calls", calls)
    sys.exit(code)
    """
)


@pytest.mark.proof
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kills", [20])
def test_kills_from_merge_to_register_leave_no_partial_folder_and_no_early_alias(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    trained = new_project(tmp_path / "trained", tiny_model, more="quantize: {small: {format: nf4}}\n")
    monkeypatch.chdir(trained)
    assert main(["train", "recipe=./mine.yaml", "until=train"]) == 0
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    done = subprocess.run([sys.executable, "-c", KILLED, "0"], cwd=whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls = int(done.stdout.split("calls")[1])
    names = set(stages(only_run(whole)))
    assert {"merge", "quantize/small", "bundle/student", "bundle/small", "register"} <= names
    assert calls > 100
    for number in range(kills):
        point = (number + 1) * (calls - 20) // (kills + 1)  # a run may make a few calls less than another
        folder = Path(shutil.copytree(trained, tmp_path / f"kill{number}"))
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(point)], cwd=folder, capture_output=True, check=False
        )
        assert killed.returncode == -9, point
        run = only_run(folder)
        for name in stages(run):
            assert (run / name).exists(), (point, name)
        for made in (run / "bundle").glob("[!.]*"):
            if made.is_dir():
                assert (made / "signature.json").is_file(), (point, made)
                assert main(["verify", f"bundle={made}", "engine=none"]) == 0, (point, made)
        check_aliases(folder, point)
        monkeypatch.chdir(folder)
        assert main(["train", "recipe=./mine.yaml"]) == 0, point
        assert set(stages(run)) == names
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)


def check_aliases(folder: Path, point: int) -> None:
    """Every alias there is points at a version that was proven."""
    if not (folder / "experiments" / "mlflow.db").is_file():
        return
    with connect(store_uri(Tracking(), folder / "experiments")) as client:
        for model in client.search_registered_models():
            for alias, number in (model.aliases or {}).items():
                version = client.get_model_version(model.name, str(number))
                assert version.tags.get("verified") == "true", (point, model.name, alias)
