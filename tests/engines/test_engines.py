"""Engines: what they answer is the model's own greedy answer, however rows are batched, shared or served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2 import SHA256, SMALL
from tiny_gguf import write_tiny_gguf
from workbench.engines import decode, llamacpp_engine, transformers_engine
from workbench.engines.ask import likely_served
from workbench.engines.child import call
from workbench.engines.decode import answer_ids, batches, common_prefix, prefill, read_prefix
from workbench.engines.device import threads_of
from workbench.engines.llamacpp import answer_of, chat_body, request, serve
from workbench.engines.transformers import load
from workbench.errors import RequestError, WorkbenchError
from workbench.records import Message

NEVER = frozenset({-1})


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """The tiny model in float32, where two ways to the same number differ by rounding only."""
    import torch

    return load(tiny_model, None, torch.device("cpu"))[0].float()


def shared_rows(own: Sequence[int] = (1, 7, 3, 12, 2, 5), start: int = 40) -> list[list[int]]:
    """Rows that share a start and go on with as many tokens of their own as `own` says."""
    return [[3 + i % 90 for i in range(start)] + [(17 * n + i) % 250 + 3 for i in range(n)] for n in own]


def generated(model: Any, row: list[int], count: int) -> list[int]:
    """What transformers' own greedy generation says to one row alone."""
    import torch

    ids = torch.tensor([row])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return out[0, len(row) :].tolist()


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), max_size=6))
def test_the_common_prefix_is_shared_by_all_and_leaves_each_row_a_token(rows: list[list[int]]) -> None:
    length = common_prefix(rows)
    assert all(row[:length] == rows[0][:length] for row in rows)
    assert all(len(row) > length for row in rows)
    longer = {tuple(row[: length + 1]) for row in rows}
    assert not rows or len(longer) > 1 or min(map(len, rows)) == length + 1


@given(st.lists(st.integers(1, 300), max_size=50), st.integers(1, 500))
def test_batches_hold_every_row_once_within_the_bound_longest_first(lengths: list[int], bound: int) -> None:
    made = list(batches(lengths, bound))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= bound for b in made)
    flat = [lengths[i] for batch in made for i in batch]
    assert flat == sorted(flat, reverse=True)


def test_logits_after_a_shared_prefix_equal_those_of_whole_rows(model: Any) -> None:
    import torch

    rows = shared_rows()
    with torch.inference_mode():
        prefix = read_prefix(model, rows)
        assert prefix is not None
        assert prefix.length == 40
        short, *_ = prefill(model, [row[40:] for row in rows], prefix)
        whole, *_ = prefill(model, rows, None)
        alone = torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
    assert (short - whole).abs().max() < 1e-5
    assert (short - alone).abs().max() < 1e-5


@pytest.mark.parametrize("batch_tokens", [60, 150, 10_000])
def test_batched_answers_equal_generation_row_by_row(model: Any, batch_tokens: int) -> None:
    rows = shared_rows()
    told = {i: said.ids for i, said in answer_ids(model, rows, 12, NEVER, batch_tokens)}
    assert told == {i: generated(model, row, 12) for i, row in enumerate(rows)}


def test_answers_are_the_same_without_the_shared_prefix(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shared_rows()
    shared = {i: said.ids for i, said in answer_ids(model, rows, 12, NEVER, 300)}
    monkeypatch.setattr(decode, "MIN_PREFIX", 10_000)
    assert {i: said.ids for i, said in answer_ids(model, rows, 12, NEVER, 300)} == shared


def test_rows_that_stop_leave_the_batch_and_the_others_go_on_unchanged(model: Any) -> None:
    rows = shared_rows(range(1, 25))
    free = {i: said.ids for i, said in answer_ids(model, rows, 16, NEVER, 10_000)}
    stop = free[0][4]
    told = {i: said.ids for i, said in answer_ids(model, rows, 16, frozenset({stop}), 10_000)}
    cut = {i: ids[: ids.index(stop) + 1] if stop in ids else ids for i, ids in free.items()}
    assert told == cut
    assert len({len(ids) for ids in told.values()}) > 1, "the rows ended at different steps"


def test_a_cache_with_room_holds_what_transformers_own_holds_as_it_grows_and_loses_rows() -> None:
    import torch
    from transformers import DynamicCache, LlamaConfig

    from workbench.engines.cache import ROOM, new_cache

    config = LlamaConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    roomy, plain = new_cache(config), DynamicCache(config=config)
    torch.manual_seed(0)
    rows = 5
    for step, tokens in enumerate([7, *[1] * (ROOM + 3), ROOM * 2, 1]):
        for layer in range(2):
            new = [torch.randn(rows, 2, tokens, 8) for _ in range(2)]
            for mine, theirs in zip(roomy.update(*new, layer), plain.update(*new, layer), strict=True):
                assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()
        if step % 12 == 5:
            keep = torch.arange(1, rows)
            roomy.batch_select_indices(keep)
            plain.batch_select_indices(keep)
            rows -= 1
    assert rows < 5


def test_a_sliding_window_model_is_asked_without_a_shared_prefix_and_answers_the_same(tmp_path: Path) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from workbench.engines.decode import ATTENTION, register_attention

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    register_attention()
    model.set_attn_implementation(ATTENTION)
    rows = shared_rows()
    assert read_prefix(model, rows) is None
    told = {i: said.ids for i, said in answer_ids(model, rows, 8, NEVER, 10_000)}
    assert told == {i: generated(model, row, 8) for i, row in enumerate(rows)}


PROMPTS = [
    (Message("user", f"permission {word}"),) for word in ("granted", "is hereby granted, free", "a", "of charge")
]


def test_the_engine_answers_every_prompt_with_counts_and_a_share_of_the_time(tiny_model: Path) -> None:
    with transformers_engine(tiny_model, batch_tokens=256) as ask:
        told = dict(ask(PROMPTS, 6))
        assert dict(ask([], 6)) == {}
    assert sorted(told) == [0, 1, 2, 3]
    assert told[1].tokens_in > told[2].tokens_in
    assert all(a.seconds > 0 and 1 <= a.tokens_out <= 6 for a in told.values())
    assert all(a.finish == "stop" or a.tokens_out == 6 for a in told.values())


def test_the_engine_gives_torch_its_threads_back(tiny_model: Path) -> None:
    import torch

    before = torch.get_num_threads()
    with transformers_engine(tiny_model, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_an_adapter_is_heard(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules="all-linear")
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(tmp_path)
    with transformers_engine(tiny_model) as ask:
        plain = [a.text for _, a in sorted(ask(PROMPTS, 8))]
    with transformers_engine(tiny_model, adapter_dir=tmp_path) as ask:
        adapted = [a.text for _, a in sorted(ask(PROMPTS, 8))]
    assert plain != adapted


def test_a_folder_that_cannot_be_asked_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a model folder"), transformers_engine(tmp_path):
        pass
    for path in tiny_model.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(RequestError, match="chat template"), transformers_engine(tmp_path):
        pass


def test_a_child_returns_its_value_and_a_failing_one_its_last_words() -> None:
    assert call("os.path:join", {"a": "x"}, what="joining") == "x"
    with pytest.raises(WorkbenchError, match=r"(?s)reading failed.*FileNotFoundError"):
        call("os:listdir", {"path": "/nowhere/at/all"}, what="reading")


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process has ended (a zombie has)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text("import time\ntime.sleep(60)\n")
    code = (
        "import time\nfrom workbench.engines.child import child\n"
        "with child('importlib:import_module', {'name': 'busy'}) as (process, folder):\n"
        "    print(process.pid, flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    assert not gone(pid, within_s=0.2)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(pid)


def test_a_file_llama_cpp_cannot_read_is_an_error_with_the_server_s_words(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such GGUF"), llamacpp_engine(tmp_path / "none.gguf"):
        pass
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really" * 10)
    with pytest.raises(WorkbenchError, match="server ended"), llamacpp_engine(tmp_path / "bad.gguf"):
        pass


TRAPS = [
    "Copyright (c) 2004-2019 Foo 1234567890",
    "v 2.0\n 5\n\n\n  x\tTab\r\nCRLF",
    "naïve — “quotes” 日本語 العربية 🎉👩\u200d💻",
    "①②③ ½ ٣٤٥ Ⅷ x² 10⁶",
    "it's we're I'll IT'S",
    "<|im_start|>user\nHi 42<|im_end|>\n",
    " 1 2 3\n4\n 5",
    "中1文2",
    "\u00a0\ufeff",
]


@pytest.mark.slow
def test_llama_cpp_sees_the_tokens_that_the_unpacked_tokenizer_gives() -> None:
    from transformers import AutoTokenizer

    from workbench.engines.llamacpp import request, serve
    from workbench.sources import model_folder, resolve

    tokenizer = AutoTokenizer.from_pretrained(model_folder(SMALL, SHA256))
    with serve(resolve(SMALL, sha256=SHA256), parallel=1) as (url, _):
        for text in TRAPS:
            body = {"content": text, "add_special": True, "parse_special": True}
            assert request(f"{url}/tokenize", body)["tokens"] == tokenizer.encode(text), text
            messages = [{"role": "user", "content": text}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert request(f"{url}/apply-template", {"messages": messages})["prompt"] == rendered


@pytest.mark.slow
def test_llama_cpp_answers_concurrently_and_says_when_a_prompt_does_not_fit() -> None:
    from workbench.sources import resolve

    prompts = [(Message("user", f"What is the capital of {land}?"),) for land in ("France", "Italy", "Spain")]
    with llamacpp_engine(resolve(SMALL, sha256=SHA256), parallel=2, context=512) as ask:
        told = dict(ask(prompts, 24))
        again = dict(ask(prompts, 24))
        with pytest.raises(WorkbenchError, match="prompt 0"):
            list(ask([(Message("user", "word " * 600),)], 8))
        ((_, one),) = ask(prompts[:1], 1)
    assert [told[i].text for i in range(3)] == [again[i].text for i in range(3)]
    assert all(told[i].text.strip() for i in range(3))
    assert all(a.tokens_in > 30 and a.tokens_out > 1 for a in told.values())
    assert (one.finish, one.tokens_out) == ("length", 1)


SCHEMA = {
    "type": "object",
    "properties": {
        "category": {"type": "string", "enum": ["Copyleft", "Permissive"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "free": {"type": "boolean"},
    },
    "required": ["category", "count", "free"],
    "additionalProperties": False,
}


def keeps_to_the_schema(text: str) -> bool:
    """Whether a text is an object of SCHEMA."""
    told = json.loads(text)
    return (
        list(told) == ["category", "count", "free"]
        and told["category"] in ("Copyleft", "Permissive")
        and isinstance(told["count"], int)
        and isinstance(told["free"], bool)
    )


def test_log_probabilities_are_those_of_a_plain_forward_pass(model: Any) -> None:
    import torch

    rows = shared_rows()
    for i, said in answer_ids(model, rows, 9, NEVER, 300):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([rows[i] + said.ids])).logits[0]
        logprobs = logits[len(rows[i]) - 1 : -1].log_softmax(-1)
        wanted = logprobs[range(len(said.ids)), said.ids]
        assert said.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        best = logprobs.topk(2).values
        assert said.leads == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-4)
        assert 0 < said.first_token <= said.latency
        assert said.seconds <= said.latency + 1


def test_both_engines_say_alike_how_sure_they_are_and_leave_out_the_token_that_ends_an_answer(
    yes_model: Path, tmp_path: Path
) -> None:
    prompt = (Message("user", "Is item 3 of shelf 3 in stock?"),)
    with transformers_engine(yes_model) as ask:
        ((_, whole),), ((_, cut),) = list(ask([prompt], 8)), list(ask([prompt], 1))
    with serve(write_tiny_gguf(yes_model, tmp_path / "yes.gguf"), parallel=1, context=512) as (url, _):
        theirs = answer_of(lambda path, body: request(url + path, body), prompt, 8, None, ())
        body = chat_body(prompt, 8, None) | {"logprobs": True, "top_logprobs": 2, "stream": True}
        head = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), head)
        ) as r:
            parts = [json.loads(line[6:])["choices"] for line in r if line.startswith(b"data: {")]
    told = [entry for part in parts for choice in part for entry in (choice.get("logprobs") or {}).get("content") or ()]
    streamed = likely_served(told, theirs.tokens_out, stopped=True)
    assert (whole.text, whole.finish, theirs.text, theirs.finish) == ("yes", "stop", "yes", "stop")
    assert whole.tokens_out == theirs.tokens_out == len(told) + 1, "the stream does not tell the last one"
    for name, value in zip(("logprob", "mean_logprob", "least_logprob", "margin"), streamed, strict=True):
        assert getattr(theirs, name) == pytest.approx(value, abs=1e-5), name
        assert getattr(whole, name) == pytest.approx(value, abs=0.05), name
    if whole.tokens_out == 2:  # what was cut after its one token is as sure as what ended there
        assert cut.logprob == pytest.approx(whole.logprob)


def test_an_answer_without_a_token_is_sure_of_nothing_and_a_lead_is_over_another_token() -> None:
    end = {"id": 2, "token": "", "bytes": [], "logprob": -0.1}
    assert likely_served([end], 1, stopped=True) == (None, None, None, None)
    first = {"id": 5, "token": "a", "bytes": [97], "logprob": -0.5}
    other = {"id": 6, "token": "b", "bytes": [98], "logprob": -0.25}
    shown = [first | {"top_logprobs": [other, first]}, first | {"top_logprobs": [first]}, end]
    assert likely_served(shown[:1], 1, stopped=False) == pytest.approx((-0.5, -0.5, -0.5, -0.25))
    assert likely_served(shown, 3, stopped=True) == (-1.0, -0.5, -0.5, None), "one has no other token beside it"
    # vLLM tells every token, the one that ends the answer by its own text.
    mark = {"token": "<|im_end|>", "bytes": [60, 124], "logprob": -0.1, "top_logprobs": []}
    assert likely_served([first, first, mark], 3, stopped=True).logprob == -1.0
    assert likely_served([first, first, mark], 3, stopped=False).logprob == pytest.approx(-1.1)
    # Four tokens made two letters: of each llama.cpp tells the last alone, and the end without a text.
    assert likely_served([first, first, end], 5, stopped=True).logprob == -1.0


def test_constrained_answers_always_satisfy_the_schema_in_transformers(tiny_model: Path) -> None:
    with transformers_engine(tiny_model, batch_tokens=256) as ask:
        told = dict(ask(PROMPTS, 300, SCHEMA))
        free = dict(ask(PROMPTS, 16))
    assert all(a.finish == "stop" and keeps_to_the_schema(a.text) for a in told.values()), told
    assert all(a.text != told[i].text for i, a in free.items()), "a random model says no JSON by itself"
    assert all(a.logprob is not None and a.logprob < 0 for a in told.values())


def test_constrained_answers_always_satisfy_the_schema_in_llama_cpp(tiny_model: Path, tmp_path: Path) -> None:
    with llamacpp_engine(write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf"), parallel=2, context=512) as ask:
        told = dict(ask(PROMPTS, 300, SCHEMA))
        free = dict(ask(PROMPTS, 4))
    assert all(a.finish == "stop" and keeps_to_the_schema(a.text) for a in told.values()), told
    for answer in free.values():
        assert answer.logprob is not None
        assert answer.logprob < 0
        assert answer.first_token is not None
        assert answer.latency is not None
        assert 0 < answer.first_token <= answer.latency


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("said", "wanted", "threads"),
    [
        ("", 3, 3),
        ("2", 3, 3),
        ("5", None, 5),
        ("4,2", None, 4),
        ("0", None, 1),
        ("", None, CORES),
        ("all", None, CORES),
    ],
)
def test_threads_are_those_of_the_recipe_else_of_omp_num_threads_else_all_cores(
    said: str, wanted: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_of(wanted) == threads
