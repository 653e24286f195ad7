"""`verify` and `serve` on a GGUF bundle in llama.cpp, through the public door."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_gguf import write_tiny_gguf
from workbench.__main__ import main
from workbench.bundles.manifest import sign, template_digest, write_manifest
from workbench.bundles.parity import Reference, write_parity
from workbench.bundles.prove import measure_here
from workbench.data.chat import load_tokenizer, prompt_ids
from workbench.records import Message
from workbench.signing_keys import signing_key

COMPANY = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
ASKED = (Message("user", "permission is hereby granted"),)


def new_bundle(folder: Path, model: Path, **changed: object) -> Path:
    """A signed bundle of the tiny model as a 16-bit GGUF, with two held-out rows; `changed` plants a fault in it."""
    folder.mkdir()
    for name in COMPANY:
        shutil.copyfile(model / name, folder / name)
    config = json.loads((model / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 2, "do_sample": False}))
    write_tiny_gguf(model, folder / "model-f16.gguf", half=True, **changed)
    asked = tuple(prompt_ids(ASKED, load_tokenizer(model, None)))
    row = Reference("a", ASKED, asked, (40, 41, 2), ({}, {}, {}), "", None, "length", "")
    (said,) = measure_here(model, [row], max_new_tokens=4)
    assert said.top is not None
    known = replace(row, top=said.top, answer=said.answer.text)
    write_parity(folder, [known, replace(known, id="b")], made_by="transformers")
    facts = {
        "name": "tiny", "kind": "quantized", "format": "gguf_f16", "recipe": "tiny", "run": "tiny/0badcafe",
        "digest": "0badcafe", "template_sha256": template_digest((model / "chat_template.jinja").read_text()),
        "stop_ids": [2], "stop_tokens": ["<|im_end|>"], "weights": ["model-f16.gguf"], "made": "2026-11-21T00:00:00Z",
        "limits": {"most_kl": 0.02, "least_agreement": 0.8, "score_margin": 0.1, "max_new_tokens": 4, "context": 256},
    }  # fmt: skip
    write_manifest(folder, facts)
    sign(folder, signing_key())
    return folder


def failed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The checks that `verify` says fail, with their reasons."""
    capsys.readouterr()
    code = main(["verify", f"bundle={bundle}", "output=json"])
    found = {c["name"]: c["why"] for c in json.loads(capsys.readouterr().out)["checks"] if not c["passed"]}
    assert code == (3 if found else 0)
    return found


def test_a_sound_gguf_bundle_stands_in_llama_cpp(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failed(new_bundle(tmp_path / "sound", tiny_model), capsys) == {}


def test_a_bos_that_the_gguf_adds_is_caught_in_the_engine(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = failed(new_bundle(tmp_path / "bos", tiny_model, add_bos=True, bos=0), capsys)
    assert "prompt_ids" in found
    assert "BOS token" in found["prompt_ids"]


def test_a_template_poisoned_inside_the_gguf_is_caught_before_anything_is_served(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = (tiny_model / "chat_template.jinja").read_text()
    bundle = new_bundle(tmp_path / "poisoned", tiny_model, template=template + "{# obey #}")
    assert "template" in failed(bundle, capsys)
    assert main(["serve", f"bundle={bundle}"]) == 3
    assert "template" in capsys.readouterr().err


def test_serve_prints_a_curl_line_that_is_answered_and_ends_with_ctrl_c(tiny_model: Path, tmp_path: Path) -> None:
    bundle = new_bundle(tmp_path / "served", tiny_model)
    command = [sys.executable, "-m", "workbench", "serve", f"bundle={bundle}", "port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stdout is not None
        words = shlex.split(server.stdout.readline())
        assert words[:2] == ["curl", "-s"]
        body = words[words.index("-d") + 1].encode()
        asked = urllib.request.Request(words[2], data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as reply:
            told = json.load(reply)
        assert told["choices"][0]["message"]["role"] == "assistant"
        assert json.loads(body)["messages"][0]["content"] == ASKED[0].content
    finally:
        server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
