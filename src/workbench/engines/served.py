"""Ask a real serving engine three things: what it makes of a chat, how likely it finds an answer, and what it says."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from workbench.engines import Ask, llamacpp, ollama, sglang, vllm
from workbench.engines.device import device_of, name_of
from workbench.engines.llamacpp import as_they_come, chat_body, read_chat, request, server_dicts
from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.extras import install_line
from workbench.records import Answer, Message, Tools

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("llamacpp", "vllm", "sglang", "ollama")
EXACT = ("llamacpp", "vllm")  # these tell their token ids and log-probabilities; of the others only answers are known


@dataclass(frozen=True)
class Served:
    """A running engine: its base URL (no /v1), the name that requests call the model by, and the end of its log."""

    engine: str
    url: str
    model: str
    log: Callable[[], str]
    parallel: int = 1
    adapter: bool = False  # unmerged, on its base

    def alive(self) -> bool:
        """Whether it still answers."""
        try:
            return bool(request(f"{self.url}/v1/models", timeout_s=10.0)["data"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def engine_for(folder: Path) -> str:
    """The engine that takes a folder: llama.cpp where there is a GGUF file, else vLLM."""
    return "llamacpp" if any(folder.glob("*.gguf")) else "vllm"


def available(engine: str) -> str | None:
    """None when the engine can be started here, else why not and what to do."""
    match engine:
        case "llamacpp":
            spec = importlib.util.find_spec("xllamacpp")
            return None if spec else f"xllamacpp is not installed: {install_line('llamacpp')}"
        case "vllm":
            return vllm.available()
        case "sglang":
            return sglang.available()
        case "ollama":
            return None if shutil.which("ollama") else "there is no `ollama` command on PATH: install Ollama"
    raise RequestError(f"unknown engine {engine!r}", where="engine", remedy=nearest(engine, ENGINES))


def computed_on(engine: str, device: str = "auto") -> str:
    """What an engine of this machine computes on, in words: "CPU", or the name of the card; "" where it is not here."""
    match engine:
        case "transformers":
            return name_of(device_of(device))
        case "llamacpp" if available(engine) is None:
            return ", ".join(llamacpp.cards()) or "CPU"
        case "vllm" if available(engine) is None:
            return vllm.card_name(Path(os.environ[vllm.VARIABLE])) or "CPU"
    return ""


@contextmanager
def serve_bundle(
    folder: Path,
    engine: str,
    *,
    context: int = 2048,
    parallel: int = 4,
    threads: int | None = None,
    port: int = 0,
    base: Path | None = None,
) -> Iterator[Served]:
    """Start the engine on a bundle's, model's or format's folder; it answers from the first line of the `with` block.

    `context` is the longest prompt and answer together, in tokens; `base` is the model under an unmerged adapter.
    RequestError when the engine is not installed, or does not take such a folder.
    """
    folder = folder.resolve()
    missing = available(engine)
    if missing:
        raise RequestError(f"{engine} cannot be started here", where=engine, remedy=missing)
    options: dict[str, Any] = {"context": context, "parallel": parallel, "port": port}
    match engine:
        case "llamacpp":
            gguf = only_gguf(folder)
            with llamacpp.serve(gguf, threads=threads, **options) as (url, log):
                yield Served(engine, url, gguf.name, log, parallel)
        case "vllm":
            python = Path(os.environ[vllm.VARIABLE])
            with vllm.serve(folder, python=python, threads=threads, base=base, **options) as (url, log):
                yield Served(engine, url, folder.name, log, parallel, (folder / "adapter_config.json").is_file())
        case "sglang":
            with sglang.serve(folder, python=Path(os.environ[sglang.VARIABLE]), **options) as (url, log):
                yield Served(engine, url, folder.name, log, parallel)
        case _:
            with ollama.serve(folder, **options) as (url, log):
                yield Served(engine, url, ollama.model_name(folder), log, parallel)


@contextmanager
def served_engine(
    folder: Path, engine: str, *, context: int = 2048, parallel: int = 8, threads: int | None = None
) -> Iterator[Ask]:
    """Start the engine and give the function that asks it, `parallel` requests at once, greedy.

    `Answer.seconds` is a request's wall time over the requests in flight: what an answer costs at this load.
    """
    with serve_bundle(folder, engine, context=context, parallel=parallel, threads=threads) as server:

        def ask_all(
            prompts: Sequence[Sequence[Message]],
            max_new_tokens: int,
            schema: Mapping[str, Any] | None = None,
            tools: Sequence[Tools] | None = None,
        ) -> Iterator[tuple[int, Answer]]:
            at_once = max(1, min(parallel, len(prompts)))

            def answer_one(index: int) -> tuple[int, Answer]:
                functions = tools[index] if tools else ()
                answer = chat(server, prompts[index], max_new_tokens, schema=schema, tools=functions)
                return index, replace(answer, seconds=answer.seconds / at_once)

            yield from as_they_come(answer_one, len(prompts), at_once)

        yield ask_all


def in_slots(server: Served, ask_row: Callable[[T, int], R], rows: Sequence[T]) -> Iterator[R]:
    """`ask_row(row, slot)` of every row, in order, as many at once as the engine takes, each in a slot of its own."""
    slots = list(range(server.parallel))

    def placed(row: T) -> R:
        slot = slots.pop()
        try:
            return ask_row(row, slot)
        finally:
            slots.append(slot)

    with ThreadPoolExecutor(server.parallel) as pool:
        yield from pool.map(placed, rows)


def prompt_ids(server: Served, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
    """The token ids that the engine itself makes of a chat, by its template and its tokenizer, as its chat does.

    llama.cpp's chat renders the template, takes off a BOS that the file wants added anyway, and tokenizes the rest
    with special tokens added; its /apply-template and /tokenize are those two halves.
    """
    chat_of: dict[str, Any] = {"messages": server_dicts(messages)} | ({"tools": list(tools)} if tools else {})
    if server.engine == "vllm":
        body = chat_of | {"model": server.model, "add_generation_prompt": True}
        return list(ask(server, "/tokenize", body)["tokens"])
    if server.engine == "llamacpp":
        text = ask(server, "/apply-template", chat_of)["prompt"]
        body = {"content": text, "add_special": True, "parse_special": True}
        return list(ask(server, "/tokenize", body)["tokens"])
    raise WorkbenchError(f"{server.engine} does not tell what tokens it makes of a chat", where=server.engine)


def forced(
    server: Served, prompt_ids: Sequence[int], answer_ids: Sequence[int], top: int, slot: int = -1
) -> list[dict[int, float]]:
    """For every answer position, the engine's `top` most likely tokens given all before it: token id → log-probability.

    In nats, of the whole softmax, before temperature and sampling. vLLM reads prompt and answer in one request. To
    llama.cpp it is one request a position: a `slot` of its own keeps what was read, so each reads one token more.
    """
    row = [*prompt_ids, *answer_ids]
    if server.engine == "vllm" and server.adapter:
        return [forced_vllm_adapter(server, row[:end], top) for end in range(len(prompt_ids), len(row))]
    if server.engine == "vllm":
        return forced_vllm(server, prompt_ids, answer_ids, top)
    if server.engine == "llamacpp":
        letter = ask(server, "/tokenize", {"content": "a"})["tokens"][-1]
        return [forced_llamacpp(server, row[:end], top, slot, letter) for end in range(len(prompt_ids), len(row))]
    raise WorkbenchError(f"{server.engine} gives no log-probabilities of given tokens", where=server.engine)


def forced_llamacpp(server: Served, ids: Sequence[int], top: int, slot: int, letter: int) -> dict[int, float]:
    """The next token's log-probabilities.

    A `letter` is what it is made to say: the bias leaves the probabilities alone, and llama.cpp gives none for a token
    that ends within a character.
    """
    body = {
        "prompt": list(ids), "n_predict": 1, "n_probs": top, "post_sampling_probs": False,
        "temperature": 0.0, "cache_prompt": True, "id_slot": slot,
        "logit_bias": [[letter, 1000.0]],
    }  # fmt: skip
    likely = ask(server, "/completion", body)["completion_probabilities"][0]["top_logprobs"]
    return {entry["id"]: float(entry["logprob"]) for entry in likely}


def forced_vllm(
    server: Served, prompt_ids: Sequence[int], answer_ids: Sequence[int], top: int
) -> list[dict[int, float]]:
    """Log-probabilities of the answer, read as part of a prompt."""
    row = [*prompt_ids, *answer_ids]
    body = {
        "model": server.model, "prompt": row, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top,
    }  # fmt: skip
    positions = ask(server, "/v1/completions", body)["choices"][0]["prompt_logprobs"][len(prompt_ids) :]
    # vLLM adds the given token where it is not among the most likely ones.
    return [{int(token): entry["logprob"] for token, entry in at.items() if entry["rank"] <= top} for at in positions]


def forced_vllm_adapter(server: Served, ids: Sequence[int], top: int) -> dict[int, float]:
    """The next token's log-probabilities: with an adapter, vLLM 0.32 fails on a prompt's when requests are batched."""
    body = {
        "model": server.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "logprobs": top,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip
    likely = ask(server, "/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
    return {int(token.removeprefix("token_id:")): value for token, value in likely.items()}


def chat(
    server: Served,
    messages: Sequence[Message],
    max_new_tokens: int,
    slot: int = -1,
    schema: Mapping[str, Any] | None = None,
    tools: Tools = (),
) -> Answer:
    """The engine's greedy answer to a chat; `seconds` is the request's wall time. `slot` as in `forced`.

    Both llama.cpp and vLLM tell the log-probabilities of what they said, and of the likeliest other tokens. vLLM is
    asked to leave calls in the text: to part them it must have been started with the right parser.
    """
    if server.engine == "llamacpp":
        return llamacpp.answer_of(partial(ask, server), messages, max_new_tokens, schema, tools, slot)
    body = {"model": server.model} | chat_body(messages, max_new_tokens, schema, tools)
    if server.engine == "vllm":
        body |= {"logprobs": True, "top_logprobs": 2}
        body |= {"tool_choice": "none", "skip_special_tokens": False} if tools else {}
    started = time.perf_counter()
    reply = ask(server, "/v1/chat/completions", body)
    return read_chat(reply, time.perf_counter() - started)


def ask(server: Served, path: str, body: dict[str, Any]) -> Any:
    """One request; WorkbenchError with the engine's own words and the end of its log when it fails."""
    try:
        return request(server.url + path, body)
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{server.engine} did not answer {path}: {error}\n{server.log()}") from error


def only_gguf(folder: Path) -> Path:
    """The one GGUF file of a folder."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise RequestError(
            f"{len(files)} GGUF files where one was wanted", where=str(folder), remedy="llama.cpp takes a GGUF format"
        )
    return files[0]
