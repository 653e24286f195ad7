"""`verify` on an adapter's bundle: what its manifest names is touched only when a trusted key has signed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import hostile_files as hostile
from workbench.__main__ import main
from workbench.bundles.manifest import SIGNATURE, read_manifest, sign, template_digest, write_manifest
from workbench.bundles.parity import Reference, write_parity
from workbench.errors import WorkbenchError
from workbench.records import Message
from workbench.signing_keys import make_key, signing_key
from workbench.sources import content_sha256, trial
from workbench.training.shrink import model_under
from workbench.views import verify

TEMPLATE = "{{ messages }}"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter's bundle as far as `verify` looks before it starts an engine, signed with the tests' own key."""
    monkeypatch.setenv("WORKBENCH_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("WORKBENCH_SIGNING_KEY", raising=False)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    write_parity(folder, [Reference("1", (Message("user", "Hello"),), (1,), (2,), ({2: -0.1},), "")], made_by="t")
    facts = {
        "name": "legal", "kind": "adapter", "format": "bfloat16", "recipe": "r", "run": "r/1", "digest": "1",
        "stop_ids": [2], "stop_tokens": ["<|im_end|>"], "weights": ["adapter_model.safetensors"], "made": "2026-11-21",
        "template_sha256": template_digest(TEMPLATE), "base": {"source": "pypi:strange==1.0!m.gguf", "sha256": None},
    }  # fmt: skip
    write_manifest(folder, facts)
    sign(folder, signing_key())
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that `verify` would fetch or open."""
    sources: list[str] = []

    def under(base: Mapping[str, Any]) -> Path:
        sources.append(base["source"])
        raise WorkbenchError("the base was asked for")

    monkeypatch.setattr(verify, "model_under", under)
    monkeypatch.setattr(verify, "really_quantized", lambda folder, format: {"bits_per_weight": 16.0})
    return sources


def outcome(bundle: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The checks that fail, with their reasons."""
    capsys.readouterr()
    assert main(["verify", f"bundle={bundle}", "engine=transformers", "output=json"]) == 3
    checks = json.loads(capsys.readouterr().out)["checks"]
    return {check["name"]: check["why"] for check in checks if not check["passed"]}


def test_the_base_that_a_trusted_signed_manifest_names_is_opened(
    bundle: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(bundle, capsys) == {"loads": "the base was asked for"}
    assert opened == ["pypi:strange==1.0!m.gguf"]


@pytest.mark.parametrize("how", ["unsigned", "another key", "manifest changed", "signature broken"])
def test_nothing_is_fetched_or_opened_for_a_bundle_that_nobody_trusted_has_signed(
    how: str, bundle: Path, opened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    match how:
        case "unsigned":
            (bundle / SIGNATURE).unlink()
        case "another key":
            make_key(tmp_path / "stranger.pem")
            sign(bundle, tmp_path / "stranger.pem")
        case "manifest changed":
            path = bundle / "MANIFEST.json"
            path.write_text(path.read_text().replace("strange==1.0", "strange==2.0"))
        case "signature broken":
            (bundle / SIGNATURE).write_text("{}")
    failed = outcome(bundle, capsys)
    assert set(failed) == {"signature", "loads"}
    assert "neither fetched nor opened" in failed["loads"]
    assert opened == []


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "model.gguf"])
def test_what_never_ends_is_given_to_no_engine_whoever_signed_it(
    name: str,
    bundle: Path,
    opened: list[str],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 2)
    monkeypatch.setenv("WORKBENCH_CACHE", str(bundle.parent / "cache"))
    facts = {key: value for key, value in read_manifest(bundle).items() if key not in ("schema", "files")}
    if name == "tokenizer.json":
        content = json.loads((tiny_model / name).read_text())
        split = {"type": "Split", "pattern": {"Regex": hostile.REGEX_BOMBS["stars"]}, "behavior": "Isolated"}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split | {"invert": False}]}
        (bundle / name).write_text(json.dumps(content))
    elif name == "chat_template.jinja":
        (bundle / name).write_text(hostile.TEMPLATE_BOMBS["letters"])
        facts["template_sha256"] = template_digest(hostile.TEMPLATE_BOMBS["letters"])
    else:
        (bundle / name).write_bytes(hostile.GGUF_BOMBS["offset"])
    (bundle / SIGNATURE).unlink()
    write_manifest(bundle, facts)
    sign(bundle, signing_key())
    failed = outcome(bundle, capsys)
    assert "not tried: " in failed["loads"]
    assert opened == []


def test_a_base_with_other_weights_than_the_manifest_names_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    base = {"source": f"dir:{folder}", "sha256": None, "weights_sha256": content_sha256(folder)}
    assert model_under(base) == folder
    assert model_under({"source": f"dir:{folder}", "sha256": None}) == folder, "an older bundle says nothing of it"
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(WorkbenchError, match="other weights than the adapter was trained on"):
        model_under(base)
