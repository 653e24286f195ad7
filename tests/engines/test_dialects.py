"""Thoughts and functions: engines are asked with a row's functions, and part thoughts from answers and their cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_gguf import write_tiny_gguf
from workbench.bundles.parity import Reference, read_parity, write_parity
from workbench.dialects import CALL_PARSERS, THOUGHT_PARSERS, Parsers, opened_by, parsers_of, parted
from workbench.engines.llamacpp import read_chat
from workbench.engines.served import Served, chat, prompt_ids, serve_bundle
from workbench.engines.transformers import answers_of, load, prompt_tokens, text_of
from workbench.records import Message, ToolCall, Tools, calls_text

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}  # fmt: skip
TIME = {"type": "function", "function": {"name": "get_time", "description": "Time", "parameters": {
    "type": "object", "properties": {}}}}  # fmt: skip
CALL = ToolCall("get_weather", '{"city": "Zürich"}', "call_1")
PROMPTS: list[tuple[Message, ...]] = [
    (Message("user", "Weather in Zürich?"),),
    (Message("system", "Be brief."), Message("user", "Time?")),
    (Message("user", "Weather?"), Message("assistant", "", tool_calls=(CALL,)),
     Message("tool", "12 °C", tool_call_id="call_1", name="get_weather"), Message("user", "And now?")),
    (Message("user", "Hello"),),
]  # fmt: skip
TOOLS: list[Tools] = [(WEATHER,), (WEATHER, TIME), (WEATHER,), ()]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "<tool_call>\n{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    import torch

    return load(tiny_model, None, torch.device("cpu"), TEMPLATE)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tools")
    write_tiny_gguf(tiny_model, folder / "tiny.gguf", template=TEMPLATE)
    with serve_bundle(folder, "llamacpp", context=1024, parallel=2, threads=1) as running:
        yield running


def test_a_prompt_with_functions_is_the_template_s_own_rendering(loaded: Any) -> None:
    _, tokenizer = loaded
    text = tokenizer.decode(prompt_tokens(tokenizer, PROMPTS[1], TOOLS[1]))
    assert '"name": "get_weather"' in text
    assert '"name": "get_time"' in text
    assert prompt_tokens(tokenizer, PROMPTS[3], ()) == prompt_tokens(tokenizer, PROMPTS[3])
    assert "get_weather" not in tokenizer.decode(prompt_tokens(tokenizer, PROMPTS[3]))


def test_llama_cpp_makes_the_same_tokens_and_says_the_same_with_functions(loaded: Any, server: Served) -> None:
    model, tokenizer = loaded
    ours = dict(answers_of(model.float(), tokenizer, PROMPTS, 12, tools=TOOLS))
    for at, (prompt, tools) in enumerate(zip(PROMPTS, TOOLS, strict=True)):
        assert prompt_ids(server, prompt, tools) == prompt_tokens(tokenizer, prompt, tools)
        theirs = chat(server, prompt, 12, tools=tools)
        assert (theirs.text, theirs.finish, theirs.tokens_in) == (ours[at].text, ours[at].finish, ours[at].tokens_in)
        assert theirs.logprob == pytest.approx(ours[at].logprob, abs=1e-2)


def test_what_was_asked_with_functions_is_asked_with_them_again_when_it_is_proven(tmp_path: Path) -> None:
    row = Reference("r", PROMPTS[2], (1, 2), (3,), ({3: -0.1},), "answer", tools=(WEATHER,))
    write_parity(tmp_path, [row], made_by="test")
    assert read_parity(tmp_path) == [row]


THOUGHTS = {
    "Qwen3": ("<think>\nLet me see.\n</think>\n\n42", "42", "Let me see."),
    "R1, begun by the prompt": ("Let me see.\n</think>\n\n42", "42", "Let me see."),
    "Magistral": ("[THINK]Let me see.[/THINK]42", "42", "Let me see."),
    "Seed": ("<seed:think>Let me see.</seed:think>42", "42", "Let me see."),
    "gpt-oss": (
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>42",
        "42",
        "Let me see.",
    ),
    "twice": ("<think>Let me</think>\n<think>see.</think>42", "42", "Let me\n\nsee."),
    "nothing thought": ("<think>\n\n</think>\n\n42", "42", ""),
    "no thoughts": (" 42\n", " 42\n", ""),
    "marks within an answer": ("Write <think> and </think>.", "Write <think> and </think>.", ""),
}


@pytest.mark.parametrize("family", THOUGHTS)
def test_thoughts_are_parted_from_the_answer_in_every_family_s_marks(family: str) -> None:
    text, answer, thoughts = THOUGHTS[family]
    own = parted(text)
    assert (own.answer, own.thoughts, own.ended) == (answer, thoughts, True)


def test_thoughts_that_never_end_leave_no_answer() -> None:
    for text in ("<think>\nI wonder", "[THINK]I wonder", "<|channel|>analysis<|message|>I wonder"):
        own = parted(text)
        assert (own.answer, own.thoughts, own.ended) == ("", "I wonder", False)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("analysis" + "assistantcommentary" * 200_000, ""),
        ("<think>a</think><|begin_of_solution|>x" + " " * 300_000 + "y", "x" + " " * 300_000 + "y"),
    ],
    ids=["channels", "solution"],
)
def test_a_reply_of_millions_of_marks_is_gone_through_once(text: str, answer: str) -> None:
    assert parted(text).answer == (answer or text)


def test_a_call_in_a_channel_is_no_thought() -> None:
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    own = parted(f"<|channel|>analysis<|message|>I call.<|end|><|start|>assistant{call}")
    assert (own.answer, own.thoughts) == (call, "I call.")


def test_a_prompt_that_begins_the_thoughts_is_known_by_its_end() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_by("<|im_start|>assistant\n") == ""


@pytest.mark.parametrize("opened", [False, True])
def test_tokens_of_thoughts_are_counted_apart_and_a_limit_they_ate_up_is_known(
    loaded: Any, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.engines import transformers
    from workbench.engines.decode import Decoded
    from workbench.evaluation.answers import predict
    from workbench.records import Example

    model, tokenizer = loaded
    template = TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%") if opened else TEMPLATE
    monkeypatch.setattr(tokenizer, "chat_template", template)
    thoughts = "permission is granted" if opened else "<think>permission is granted"
    row = Example("r", (Message("user", "Hello"), Message("assistant", "free")))

    def saying(text: str, ended: bool) -> Any:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [2] * ended
        spoken = Decoded(ids, [-0.1] * len(ids), [0.5] * len(ids), 0.1, 0.1, 0.1)
        monkeypatch.setattr(transformers, "answer_ids", lambda *more: iter([(0, spoken)]))
        return predict(row, "", dict(answers_of(model, tokenizer, [row.prompt], 99))[0], "free"), len(ids)

    whole, count = saying(f"{thoughts}</think>free", True)
    assert (whole.answer, whole.thoughts) == ("free", "permission is granted")
    assert whole.tokens_out == count
    assert whole.tokens_out - whole.tokens_thought == len(tokenizer("free")["input_ids"]) + 1
    assert not whole.lost_in_thought
    cut, count = saying(thoughts, False)
    assert (cut.answer, cut.thoughts, cut.tokens_thought) == ("", "permission is granted", count)
    assert cut.lost_in_thought


def test_special_tokens_that_mark_calls_and_thoughts_are_part_of_what_was_said(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer("<|im_start|>free")["input_ids"]
    assert text_of(tokenizer, ids) == "free"
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    assert text_of(tokenizer, tokenizer("<|im_start|>[TOOL_CALLS][]")["input_ids"]) == "[TOOL_CALLS][]"


def test_a_server_s_own_fields_of_calls_and_thoughts_are_the_same_answer() -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Zürich"}'}
    calls = [{"type": "function", "function": function}]
    message = {"content": None, "reasoning_content": "I look.", "tool_calls": calls}
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}}
    answer = read_chat({"choices": [{"finish_reason": "tool_calls", "message": message}], "usage": usage}, 1.0)
    assert answer.text == calls_text([CALL])
    assert (answer.thoughts, answer.tokens_out, answer.tokens_thought, answer.finish) == ("I look.", 9, 4, "stop")


@pytest.mark.parametrize(
    ("template", "calls", "thoughts"),
    [
        ("<tool_call>{{ '{\"name\": ' }}</tool_call>", Parsers("hermes", "qwen25"), Parsers()),
        ("<tool_call></think>", Parsers("hermes", "qwen25"), Parsers("qwen3", "qwen3")),
        ("<tool_call><function=x><parameter=y>", Parsers("qwen3_coder", "qwen3_coder"), Parsers()),
        ("<tool_call><arg_key></think>", Parsers("glm45", "glm45"), Parsers("glm45", "glm45")),
        ("[TOOL_CALLS][THINK]", Parsers("mistral", "mistral"), Parsers("mistral", "mistral")),
        ("<|channel|><|message|>functions", Parsers("openai", "gpt-oss"), Parsers("openai_gptoss", "gpt-oss")),
        ("<|python_tag|>", Parsers("llama3_json", "llama3"), Parsers()),
        ("<｜tool▁calls▁begin｜></think>", Parsers("deepseek_v31", "deepseekv31"), Parsers("deepseek_r1", "deepseek-r1")),  # noqa: E501
        ("{{ message.content }}", Parsers(), Parsers()),
    ],
)  # fmt: skip
def test_a_template_names_the_parsers_by_what_it_writes(template: str, calls: Parsers, thoughts: Parsers) -> None:
    assert parsers_of(template, CALL_PARSERS) == calls
    assert parsers_of(template, THOUGHT_PARSERS) == thoughts
