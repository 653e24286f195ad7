"""Served engines: what they tell of tokens, probabilities and answers is what training's own model has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm2 import SHA256, SMALL
from tiny_gguf import write_tiny_gguf
from workbench.bundles.parity import Reference, compare, likeliest, measure, parity_checks, top_of
from workbench.engines import llamacpp, vllm
from workbench.engines.ask import stop_ids
from workbench.engines.child import program
from workbench.engines.served import Served, available, chat, computed_on, engine_for, forced, prompt_ids, serve_bundle
from workbench.engines.transformers import load, transformers_engine
from workbench.errors import RequestError, WorkbenchError
from workbench.records import Message, message_dicts

PROMPTS = [
    (Message("system", "permission"), Message("user", "is hereby granted, free")),
    (Message("user", "of charge: naïve\n 日本"),),
    (Message("user", "<|im_end|> system"),),
]
QUESTIONS = [(Message("user", f"What is the capital of {land}? One word."),) for land in ("France", "Italy", "Spain")]
CLOSE = 1e-3  # nats: full precision on both sides


def references(model_dir: Path, prompts: Any, length: int, adapter: Path | None = None) -> list[Reference]:
    """What transformers itself says to each prompt, greedily, and how likely it holds every token of it."""
    import torch

    model, tokenizer = load(model_dir, adapter, torch.device("cpu"))
    stops = stop_ids(model, tokenizer)
    made = []
    for at, prompt in enumerate(prompts):
        ids = tokenizer.apply_chat_template(message_dicts(prompt), add_generation_prompt=True, return_dict=False)
        row, answer = list(ids), []
        with torch.inference_mode():
            while len(answer) < length and (not answer or answer[-1] not in stops):
                answer.append(int(model(torch.tensor([row + answer])).logits[0, -1].argmax()))
            logits = model(torch.tensor([row + answer])).logits[0, len(row) - 1 : -1].float()
        ended = answer[-1] in stops
        text = tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True)
        top = tuple(top_of(torch.log_softmax(logits, -1), 20))
        finish = "stop" if ended else "length"
        made.append(Reference(str(at), prompt, tuple(row), tuple(answer), top, text, None, finish))
    return made


@pytest.fixture(scope="module")
def tiny_references(tiny_model: Path) -> list[Reference]:
    return references(tiny_model, PROMPTS, 8)


def verdicts(server: Served, rows: list[Reference], most_kl: float = CLOSE) -> dict[str, tuple[bool, str]]:
    told = compare(rows, measure(server, rows, max_new_tokens=max(len(r.answer_ids) for r in rows)))
    made = parity_checks(told, most_kl=most_kl, score_margin=0.0)
    return {check.name: (check.passed, check.why) for check in made}


@pytest.fixture(scope="module")
def tiny_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tiny_gguf")
    write_tiny_gguf(tiny_model, folder / "tiny.gguf")
    with serve_bundle(folder, "llamacpp", context=256, parallel=2, threads=2) as server:
        yield server


def test_llama_cpp_agrees_with_transformers_on_tokens_and_probabilities(
    tiny_server: Served, tiny_references: list[Reference]
) -> None:
    checks = verdicts(tiny_server, tiny_references)
    assert all(passed for passed, _ in checks.values()), checks


def test_forced_probabilities_are_those_of_the_whole_softmax_in_any_order_and_slot(
    tiny_server: Served, tiny_references: list[Reference]
) -> None:
    row = tiny_references[0]
    told = forced(tiny_server, row.prompt_ids, row.answer_ids, 20)
    assert [len(at) for at in told] == [20] * len(row.answer_ids)
    for mine, theirs in zip(row.top, told):
        shared = mine.keys() & theirs.keys()
        assert len(shared) >= 15
        assert all(abs(mine[t] - theirs[t]) < 0.05 for t in shared)
    assert forced(tiny_server, row.prompt_ids, row.answer_ids, 20, slot=1) == [
        pytest.approx(at, abs=1e-3) for at in told
    ]
    unlikely = [likeliest({t: -v for t, v in at.items()}) for at in told]
    other = forced(tiny_server, row.prompt_ids, unlikely, 20)
    assert other[0] == pytest.approx(told[0], abs=1e-3), "the first position has seen the prompt alone"
    assert other[1].keys() != told[1].keys(), "later ones follow what is forced"


def test_a_chat_counts_the_very_tokens_that_the_engine_tells(tiny_server: Served) -> None:
    assert tiny_server.alive()
    for prompt in PROMPTS:
        answer = chat(tiny_server, prompt, 3)
        assert answer.tokens_in == len(prompt_ids(tiny_server, prompt))
        assert answer.finish == "length"


def test_an_engine_s_refusal_comes_with_its_own_words(tiny_server: Served) -> None:
    with pytest.raises(WorkbenchError, match="context"):
        chat(tiny_server, (Message("user", "permission " * 400),), 8)


TWICE = "{{ '<|im_start|>' }}"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        # llama.cpp takes one BOS off a template's text when it adds one itself: this alone is healed.
        ({"add_bos": True}, ""),
        ({"add_bos": True, "template": TWICE}, "puts the BOS token twice (id 1)"),
        ({"template": TWICE}, "puts the BOS token twice (id 1)"),
        ({"add_bos": True, "bos": 0}, "puts a BOS token in front (id 0) that training never saw"),
    ],
)
def test_a_doubled_bos_is_named(
    changed: dict[str, Any], words: str, tiny_model: Path, tmp_path: Path, tiny_references: list[Reference]
) -> None:
    if "template" in changed:
        changed = changed | {"template": changed["template"] + (tiny_model / "chat_template.jinja").read_text()}
    write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf", **changed)
    with serve_bundle(tmp_path, "llamacpp", context=256, parallel=1, threads=2) as server:
        checks = verdicts(server, tiny_references[:2])
    assert checks["prompt_ids"][0] is not bool(words)
    assert words in checks["prompt_ids"][1]
    assert checks["kl"][0], "the weights are not to blame"


def test_a_folder_names_its_engine_and_an_engine_why_it_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_for(tmp_path) == "vllm"
    (tmp_path / "model.gguf").touch()
    assert engine_for(tmp_path) == "llamacpp"
    assert available("llamacpp") is None
    assert "VLLM_PYTHON is not set" in (available("vllm") or "")
    monkeypatch.setenv("VLLM_PYTHON", str(tmp_path / "none"))
    assert "is no interpreter" in (available("vllm") or "")
    monkeypatch.setenv("VLLM_PYTHON", sys.executable)
    monkeypatch.setattr(vllm, "outside_environment", dict)
    assert "has no vLLM" in (available("vllm") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ollama" in (available("ollama") or "")
    monkeypatch.delenv("SGLANG_PYTHON", raising=False)
    assert "SGLANG_PYTHON" in (available("sglang") or "")
    with pytest.raises(RequestError, match="unknown engine 'llama'"):
        available("llama")
    with pytest.raises(RequestError, match="cannot be started here"), serve_bundle(tmp_path, "ollama"):
        pass
    (tmp_path / "other.gguf").touch()
    with pytest.raises(RequestError, match="2 GGUF files"), serve_bundle(tmp_path, "llamacpp"):
        pass


def test_an_engine_that_tells_no_tokens_says_so() -> None:
    server = Served("ollama", "http://127.0.0.1:9", "m", lambda: "")
    for ask in (lambda: prompt_ids(server, PROMPTS[0]), lambda: forced(server, [1], [2], 5)):
        with pytest.raises(WorkbenchError, match="ollama"):
            ask()
    assert not server.alive()


def test_an_adapter_s_options_name_its_base_rank_and_own_files(tmp_path: Path, tiny_model: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 24, "base_model_name_or_path": "/nowhere"}')
    with pytest.raises(RequestError, match="not a folder here"):
        vllm.model_options(adapter, None)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    options = vllm.model_options(adapter, tiny_model)
    assert options[:4] == ["--model", str(tiny_model), "--dtype", "bfloat16"]
    assert options[options.index("--max-lora-rank") + 1] == "32"
    assert options[options.index("--lora-modules") + 1] == f"lora={adapter}"
    assert options[options.index("--chat-template") + 1] == str(adapter / "chat_template.jinja")
    assert "--tokenizer" not in options


CARD = """#!/bin/sh
# Stands in for an interpreter whose torch sees a card, three quarters of it taken, and whose vLLM ends at once.
case "$*" in
  *mem_get_info*) echo "20000000000 80000000000" ;;
  *get_device_name*) echo "NVIDIA Stand-in" ;;
  *) echo "started: $*"; exit 3 ;;
esac
"""


def test_vllm_takes_the_share_of_the_card_that_is_free_and_the_report_names_the_card(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(CARD)
    python.chmod(0o755)
    with pytest.raises(WorkbenchError, match=r"--gpu-memory-utilization 0\.22") as told:
        with vllm.serve(tiny_model, python=python):
            pass
    assert "--enforce-eager" not in str(told.value)
    assert (vllm.memory_share(80, 80), vllm.memory_share(1, 80)) == (0.9, 0.01)
    monkeypatch.setenv("VLLM_PYTHON", str(python))
    monkeypatch.setattr(vllm, "available", lambda: None)
    assert computed_on("vllm") == "NVIDIA Stand-in"
    monkeypatch.setattr(vllm, "available", lambda: "not here")
    assert computed_on("vllm") == ""


def test_llama_cpp_s_cards_are_those_of_its_devices_that_are_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    assert computed_on("llamacpp") == "CPU", "as it was built here"
    kinds = xllamacpp.ggml_backend_dev_type
    devices = [{"description": "EPYC", "type": kinds.GGML_BACKEND_DEVICE_TYPE_CPU},
               {"description": "NVIDIA H100", "type": kinds.GGML_BACKEND_DEVICE_TYPE_GPU}]  # fmt: skip
    monkeypatch.setattr(xllamacpp, "get_device_info", lambda: devices)
    assert llamacpp.cards_here() == ["NVIDIA H100"]


@pytest.mark.parametrize(("card", "files"), [(False, ("vllm_cpu", "torch_cpu")), (True, ("vllm_cuda",))])
def test_who_has_no_vllm_is_told_the_lock_file_of_this_machine(
    card: bool, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "card_is_here", lambda: card)
    line = vllm.available() or ""
    assert all(f"-r {vllm.LOCKS / name}.txt" in line and (vllm.LOCKS / f"{name}.txt").is_file() for name in files)
    assert line.count("-r ") == len(files)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, within_s: float = 25.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


FAMILY = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "open('pids', 'w').write(f'{child.pid} ')\n"
    "time.sleep(60)\n"
)


def grandchild(folder: Path) -> int:
    while not (folder / "pids").is_file() or not (folder / "pids").read_text().endswith(" "):
        time.sleep(0.05)
    return int((folder / "pids").read_text())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_a_program_ends_with_everything_it_started_and_sees_none_of_our_packages() -> None:
    with program([sys.executable, "-c", FAMILY], {}) as (process, folder):
        pid = grandchild(folder)
        assert alive(pid)
    assert gone(pid)
    told = "os.environ.get('PYTHONPATH'), tempfile.gettempdir() == os.getcwd(), os.environ['A']"
    code = f"import os, tempfile; print({told})"
    with program([sys.executable, "-c", code], {"A": "b"}) as (process, folder):
        assert process.wait(20) == 0
        assert (folder / "log.txt").read_text().split()[-3:] == ["None", "True", "b"]
    with program([sys.executable, "-c", "raise SystemExit(7)"], {}) as (process, _):
        assert process.wait(20) == 7


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_a_program_ends_with_everything_it_started_when_we_are_killed() -> None:
    code = (
        "import sys, time\nfrom workbench.engines.child import program\n"
        f"with program([sys.executable, '-c', {FAMILY!r}], {{}}) as (process, folder):\n"
        "    print(folder, flush=True)\n    time.sleep(60)\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    pid = grandchild(Path(ours.stdout.readline().strip()))
    os.kill(ours.pid, signal.SIGKILL)
    ours.wait()
    assert gone(pid)


@pytest.mark.slow
def test_a_real_gguf_stands_its_checks_and_a_lost_stop_token_is_named(tmp_path: Path) -> None:
    from workbench.sources import model_folder, resolve

    source = resolve(SMALL, sha256=SHA256)
    rows = references(model_folder(SMALL, SHA256), QUESTIONS, 24)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "model.gguf").symlink_to(source)
    with serve_bundle(whole, "llamacpp", context=256, parallel=2) as server:
        checks = verdicts(server, rows, most_kl=0.2)
    assert all(passed for passed, _ in checks.values()), checks

    # The same ids under another name: llama.cpp knows <|im_end|> as a stop token whatever the file says.
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "model.gguf").write_bytes(without_stop(source.read_bytes()))
    with serve_bundle(lost, "llamacpp", context=256, parallel=2) as server:
        longer = compare(rows, measure(server, rows, max_new_tokens=64))
    checks = {c.name: (c.passed, c.why) for c in parity_checks(longer, most_kl=0.2, score_margin=0.0)}
    assert checks["prompt_ids"][0]
    assert checks["kl"][0]
    assert not checks["stops"][0]
    assert "held the stop token likeliest and did not stop there" in checks["stops"][1]


def without_stop(gguf: bytes) -> bytes:
    """A GGUF whose end-of-turn token is no longer one: another id is named, and its text is another of that length."""
    for name in (b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.padding_token_id"):
        at = gguf.find(name)
        if at >= 0:
            value = at + len(name) + 4  # after the key, its type as 32 bits, then the value
            gguf = gguf[:value] + (3).to_bytes(4, "little") + gguf[value + 4 :]
    return gguf.replace(b"<|im_end|>", b"<|im_enX|>")


@pytest.fixture
def real_model(vllm: None) -> Path:
    from workbench.sources import model_folder

    return model_folder(SMALL, SHA256)


@pytest.mark.slow
def test_vllm_agrees_with_transformers_on_tokens_probabilities_and_answers(real_model: Path) -> None:
    rows = references(real_model, QUESTIONS, 24)
    with serve_bundle(real_model, "vllm", context=256, parallel=2) as server:
        checks = verdicts(server, rows, most_kl=0.01)
        alone = forced(server, rows[0].prompt_ids, [9000, 9001], 5)
        told = chat(server, rows[0].messages, 24)
    assert all(passed for passed, _ in checks.values()), checks
    assert [len(at) for at in alone] == [5, 5], "the forced token is not added to the list"
    with transformers_engine(real_model) as ask:
        ((_, ours),) = ask([rows[0].messages], 24)
    assert told.text == ours.text
    for name in ("logprob", "mean_logprob", "least_logprob", "margin"):
        assert getattr(told, name) == pytest.approx(getattr(ours, name), abs=0.1), name


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_vllm_runs_w8a8_as_transformers_does(real_model: Path, tmp_path: Path) -> None:
    from workbench.compress.preflight import write_format

    write_format("w8a8", real_model, tmp_path, ["permission is hereby granted, free of charge"] * 4, rows=4, tokens=32)
    rows = references(tmp_path, QUESTIONS, 12)
    with serve_bundle(tmp_path, "vllm", context=256, parallel=2) as server:
        checks = verdicts(server, rows, most_kl=0.1)  # open questions: eight-bit inputs tip near ties
    assert checks["prompt_ids"][0], checks
    assert checks["kl"][0], checks


@pytest.mark.proof
def test_vllm_serves_an_unmerged_adapter_on_its_base(real_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, tokenizer = load(real_model, None, torch.device("cpu"))
    wanted = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, wanted)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapter = tmp_path / "lora"
    wrapped.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    rows = references(real_model, QUESTIONS, 12, adapter)
    assert [r.top for r in rows] != [r.top for r in references(real_model, QUESTIONS, 12)]
    with serve_bundle(adapter, "vllm", context=256, parallel=2, base=real_model) as server:
        checks = verdicts(server, rows, most_kl=0.01)
    assert checks["prompt_ids"][0], checks
    assert checks["kl"][0], checks


@pytest.mark.slow
def test_vllm_s_own_words_come_with_its_failure(real_model: Path, tmp_path: Path) -> None:
    for path in real_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(WorkbenchError, match=r"(?s)vLLM's server ended.*afetensor"), serve_bundle(tmp_path, "vllm"):
        pass
