"""Ask a GGUF file through llama.cpp's server, in a child process on loopback, several requests at once."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from workbench.dialects import MARKS, opened_by, parted
from workbench.engines.ask import Ask, likely_served
from workbench.engines.child import call as call_child
from workbench.engines.child import child, tail, wait_until
from workbench.engines.device import threads_of
from workbench.errors import RequestError, WorkbenchError
from workbench.files import write_whole
from workbench.records import Answer, Message, ToolCall, Tools, calls_text, message_dicts

T = TypeVar("T")
Send = Callable[[str, dict[str, Any]], Any]
START_TIMEOUT_S = 120.0
ADDRESS = "address.txt"
# Without proxies: a server on loopback is never behind one, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def llamacpp_engine(gguf: Path, *, parallel: int = 8, context: int = 2048, threads: int | None = None) -> Iterator[Ask]:
    """Serve a GGUF and give the function that asks it, `parallel` requests at once, greedy.

    The file's own chat template is used. `context` is the longest prompt and answer together, in tokens. A slot
    keeps the start of its last prompt, so a shared system prompt or examples are read once a slot.
    `Answer.seconds` is a request's wall time over the requests in flight: what an answer costs at this load.
    """
    with serve(gguf, parallel=parallel, context=context, threads=threads) as (url, log):

        def answer_one(
            index: int, prompt: Sequence[Message], max_new_tokens: int, schema: Mapping[str, Any] | None, tools: Tools
        ) -> tuple[int, Answer]:
            try:
                return index, answer_of(
                    lambda path, body: request(url + path, body), prompt, max_new_tokens, schema, tools
                )
            except (OSError, ValueError) as error:
                raise WorkbenchError(_why(error, index, context) + "\n" + log(), where=str(gguf)) from error

        def ask(
            prompts: Sequence[Sequence[Message]],
            max_new_tokens: int,
            schema: Mapping[str, Any] | None = None,
            tools: Sequence[Tools] | None = None,
        ) -> Iterator[tuple[int, Answer]]:
            at_once = max(1, min(parallel, len(prompts)))
            answers = as_they_come(
                lambda i: answer_one(i, prompts[i], max_new_tokens, schema, tools[i] if tools else ()),
                len(prompts),
                at_once,
            )
            yield from ((index, replace(answer, seconds=answer.seconds / at_once)) for index, answer in answers)

        yield ask


def answer_of(
    send: Send,
    prompt: Sequence[Message],
    max_new_tokens: int,
    schema: Mapping[str, Any] | None,
    tools: Tools,
    slot: int = -1,
) -> Answer:
    """A llama.cpp server's greedy answer, in its own words; `send(path, body)` gives a request's reply.

    With functions, its chat would hold the model to their schemas, and fail where the answer is no whole call: so the
    prompt is rendered by the server, and continued freely. The prompt's end also tells whether it begins the thoughts.
    """
    started = time.perf_counter()
    if not tools:
        body = chat_body(prompt, max_new_tokens, schema) | {"logprobs": True, "top_logprobs": 2, "id_slot": slot}
        reply = send("/v1/chat/completions", body)
        seconds, opening = time.perf_counter() - started, ""
        if reply["choices"][0]["finish_reason"] == "length":  # it may have broken off within thoughts
            opening = opened_by(send("/apply-template", {"messages": body["messages"]})["prompt"])
        answer = read_chat(reply, seconds, opening)
    else:
        rendered = send("/apply-template", {"messages": server_dicts(prompt), "tools": list(tools)})["prompt"]
        body = {
            "prompt": rendered, "n_predict": max_new_tokens, "temperature": 0.0, "n_probs": 2, "id_slot": slot,
            "post_sampling_probs": False, "cache_prompt": True, "preserved_tokens": sorted(MARKS),
        } | ({"json_schema": dict(schema)} if schema else {})  # fmt: skip
        answer = read_completion(send("/completion", body), time.perf_counter() - started, opened_by(rendered))
    if not answer.thoughts:
        return answer
    after = len(send("/tokenize", {"content": answer.text})["tokens"])
    return replace(answer, tokens_thought=max(0, answer.tokens_out - after - (answer.finish == "stop")))


def chat_body(
    prompt: Sequence[Message], max_new_tokens: int, schema: Mapping[str, Any] | None, tools: Tools = ()
) -> dict[str, Any]:
    """A greedy chat request as servers take it; with a schema, no token leaves its grammar."""
    body: dict[str, Any] = {"messages": server_dicts(prompt), "max_tokens": max_new_tokens, "temperature": 0.0}
    if tools:
        body["tools"] = list(tools)
    if schema:
        wanted = {"name": "answer", "strict": True, "schema": dict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return body


def server_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI's servers take them: the arguments of calls are JSON text."""
    turns = message_dicts(messages)
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return turns


def read_chat(reply: Mapping[str, Any], seconds: float, opening: str = "") -> Answer:
    """The answer in a chat completion that took so many seconds.

    llama.cpp tells how long it read the prompt; log-probabilities, where asked for, are as `likely_served` reads them.
    Calls and thoughts that the server has parted from the text are taken from their own fields. `opening` is the mark
    of thoughts that the prompt ended with.
    """
    choice, usage, timings = reply["choices"][0], reply["usage"], reply.get("timings") or {}
    message = choice["message"]
    finish: Literal["stop", "length"] = "length" if choice["finish_reason"] == "length" else "stop"
    content = (choice.get("logprobs") or {}).get("content") or ()
    sure = likely_served(content, usage["completion_tokens"], stopped=finish == "stop")
    apart = message.get("reasoning_content") or message.get("reasoning") or ""
    own = parted((message["content"] or "") if apart else opening + (message["content"] or ""))
    calls = [
        ToolCall(call["function"]["name"], call["function"].get("arguments") or "{}")
        for call in message.get("tool_calls") or ()
    ]
    details = usage.get("completion_tokens_details") or {}
    return Answer(
        text="\n".join(filter(None, [own.answer, calls_text(calls)])),
        finish=finish,
        tokens_in=usage["prompt_tokens"],
        tokens_out=usage["completion_tokens"],
        seconds=seconds,
        latency=seconds,
        first_token=timings["prompt_ms"] / 1000 if "prompt_ms" in timings else None,
        logprob=sure.logprob,
        thoughts=apart or own.thoughts,
        tokens_thought=int(details.get("reasoning_tokens") or 0),
        mean_logprob=sure.mean,
        least_logprob=sure.least,
        margin=sure.margin,
    )


def read_completion(reply: Mapping[str, Any], seconds: float, opening: str) -> Answer:
    """The answer in a plain completion of llama.cpp's."""
    own, timings = parted(opening + reply["content"]), reply.get("timings") or {}
    finish: Literal["stop", "length"] = "length" if reply["stop_type"] == "limit" else "stop"
    entries = reply.get("completion_probabilities") or ()
    sure = likely_served(entries, reply["tokens_predicted"], stopped=finish == "stop")
    return Answer(
        text=own.answer,
        finish=finish,
        tokens_in=reply["tokens_evaluated"],
        tokens_out=reply["tokens_predicted"],
        seconds=seconds,
        latency=seconds,
        first_token=timings["prompt_ms"] / 1000 if "prompt_ms" in timings else None,
        logprob=sure.logprob,
        thoughts=own.thoughts,
        mean_logprob=sure.mean,
        least_logprob=sure.least,
        margin=sure.margin,
    )


def as_they_come(job_of: Callable[[int], T], count: int, at_once: int) -> Iterator[T]:
    """`job_of` of 0 to `count - 1`, so many at once, each as it finishes; on an error the waiting ones are dropped."""
    pool = ThreadPoolExecutor(at_once)
    try:
        for job in as_completed([pool.submit(job_of, index) for index in range(count)]):
            yield job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def serve(
    gguf: Path, *, parallel: int = 8, context: int = 2048, threads: int | None = None, port: int = 0
) -> Iterator[tuple[str, Callable[[], str]]]:
    """A healthy llama.cpp server: its base URL, and a function that gives the end of its log.

    Port 0 is any free one. WorkbenchError with that end when it does not come up in two minutes.
    """
    if not gguf.is_file():
        raise RequestError("there is no such GGUF file", where=str(gguf))
    arguments = {
        "path": str(gguf.resolve()),
        "parallel": parallel,
        "context": context,
        "threads": threads_of(threads),
        "port": port,
    }
    with child("workbench.engines.llamacpp:serve_here", arguments) as (process, folder):
        wait_until(
            lambda: _healthy(folder / ADDRESS), process, folder,
            what="llama.cpp's server", where=str(gguf), timeout_s=START_TIMEOUT_S,
            remedy="the last lines above are the server's own; a file it cannot read must be quantized again",
        )  # fmt: skip
        yield (folder / ADDRESS).read_text(), lambda: tail(folder)


def serve_here(path: str, parallel: int, context: int, threads: int, port: int) -> None:
    """Serve in this process until it is killed; the address goes to `address.txt` in the working directory."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {Path(path).name}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = parallel, context * parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = -1  # every layer on the card, where llama.cpp was built for one
    params.fit_params = False  # a context cut to fit memory would cut prompts without a word
    params.cache_ram_mib = 0  # no second copy of old prompts in memory
    params.ui = False
    params.verbosity = 2  # warnings and errors: what `tail` shows when it does not come up
    # Answers come verbatim: no part is taken for "thinking" and moved out of the content.
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    server = xllamacpp.Server(params)
    write_whole(Path(ADDRESS), server.listening_address)
    while True:
        time.sleep(3600)


@cache
def cards() -> tuple[str, ...]:
    """The cards that llama.cpp computes on; none where it was built for the CPU alone. Asked once, in a child process:
    whoever asks holds memory of each card from then on.
    """
    return tuple(call_child("workbench.engines.llamacpp:cards_here", {}, what="llama.cpp's list of devices"))


def cards_here() -> list[str]:
    """In a child process: what llama.cpp calls the devices that are no CPU."""
    import xllamacpp

    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    return [str(device["description"]) for device in xllamacpp.get_device_info() if device["type"] != cpu]


def request(url: str, body: dict[str, Any] | None = None, timeout_s: float = 600.0) -> Any:
    """One JSON request to the server: POST with a body, GET without; ValueError with the server's own error text."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with _OPENER.open(call, timeout=timeout_s) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise ValueError(error.read().decode(errors="replace")[:500]) from error


def _healthy(address: Path) -> bool:
    try:
        return bool(request(address.read_text() + "/health", timeout_s=5.0)["status"] == "ok")
    except (OSError, ValueError, KeyError):
        return False


def _why(error: Exception, index: int, context: int) -> str:
    if "exceed" in str(error) and "context" in str(error):
        return f"prompt {index} does not fit in {context} tokens: {error}"
    return f"llama.cpp's server did not answer prompt {index}: {error}"
