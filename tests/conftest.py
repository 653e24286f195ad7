"""Shared fixtures: a tiny random Llama with a byte-level BPE ChatML tokenizer, the real small model, ready stores."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

import screenshots
from ready_store import connect, connect_to_a_copy
from smollm2 import SHA256, SMALL
from workbench.privacy.secrets import READ

# A shell starts its background jobs with Ctrl-C ignored, and children inherit that: the tests that send one need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two workers (`-n 2`) share the cores: threads of one that wait by spinning would hold up the other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Bundles are signed with a key of the tests' own, never with the user's.
os.environ["WORKBENCH_KEYS"] = tempfile.mkdtemp(prefix="workbench-keys-")
os.environ.pop("WORKBENCH_SIGNING_KEY", None)

# vLLM's CPU build has no kernel for heads as small as the tiny model's: only a test that asks for `vllm` has it. Under
# another name it reaches the workers too.
if "VLLM_PYTHON" in os.environ:
    os.environ["TESTS_VLLM_PYTHON"] = os.environ.pop("VLLM_PYTHON")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def modules_are_no_garbage() -> Iterator[None]:
    """Millions of objects of libraries live as long as the tests: no collection need walk through them again."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def ready_stores() -> Iterator[None]:
    """New MLflow stores start as copies of one that was made once, and no commit waits for the disk.

    What a killed process has committed is the kernel's then, and stays: only a power cut would lose it.
    """
    with pytest.MonkeyPatch.context() as patch:
        event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        patch.setattr("workbench.tracking.store.connect", connect_to_a_copy)
        yield


@pytest.fixture(autouse=True)
def keys_of_this_test_alone() -> Iterator[None]:
    """A key that one test has used is masked in its own texts, not in those of the tests after it."""
    yield
    READ.clear()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's environment, for this test; without one it is skipped."""
    if "TESTS_VLLM_PYTHON" not in os.environ:
        pytest.skip("VLLM_PYTHON is not set")
    monkeypatch.setenv("VLLM_PYTHON", os.environ["TESTS_VLLM_PYTHON"])


class FedAtTheEnd:
    """Feeds MLflow in the test's own process, once, when the command ends."""

    def __init__(self, recipe: Any, run: Any):
        self.recipe, self.run = recipe, run
        self.before = self.size()

    def size(self) -> int:
        return (self.run.folder / "events.jsonl").stat().st_size

    def end(self) -> None:
        from workbench.stages.lifecycle import feed_the_end

        if self.size() != self.before:
            feed_the_end(self.recipe, self.run)
            self.before = self.size()

    def leave(self) -> None:
        self.end()


@pytest.fixture(scope="session", autouse=True)
def fed_in_this_process() -> Iterator[None]:
    """No process of its own feeds MLflow: it takes three seconds to start, and most tests do not look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.stages.lifecycle.feed_tracking", FedAtTheEnd)
        yield


@pytest.fixture
def own_feeder(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is fed by a process of its own, as a user's run is."""
    from workbench.stages.feeding import start_feeding

    monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", start_feeding)


@pytest.fixture
def new_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are made from nothing in this test, as a user's first run makes one."""
    monkeypatch.setattr("workbench.tracking.store.connect", connect)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer random Llama (hidden 64) in bfloat16 and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(
        ["permission is hereby granted, free of charge", "system user assistant", '{"category": "Copyleft"}'] * 4,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The real 135M model as plain weights."""
    from workbench.sources import model_folder

    return model_folder(SMALL, SHA256)


@pytest.fixture(scope="session")
def yes_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught to answer every question with yes: a base that can fall, and a teacher that stops."""
    from yes_teacher import taught_yes

    return taught_yes(tiny_model, tmp_path_factory.mktemp("yes"))


@pytest.fixture(scope="module")
def browser() -> Iterator[screenshots.Browser]:
    """A real browser; whoever wants it is skipped where there is none."""
    if not screenshots.program():
        pytest.skip("no Chromium or Chrome here")
    with screenshots.browse() as opened:
        yield opened
