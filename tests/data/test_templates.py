"""Stand-ins, in our own words, for the chat templates of open families: the mask is right, or the row is refused.

Each has the traits of its family that masks have been wrong by: dates, stripped and added thoughts, channels, a folded
or missing system role, calls of tools in its own marks.
"""

# ruff: noqa: E501  (a template is read by its turns, not by its lines)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from workbench.data.chat import load_tokenizer, prompt_ids, render, render_all
from workbench.data.templates import SHIPPED, template_notes
from workbench.data.tokenizer import LightTokenizer
from workbench.errors import RequestError
from workbench.recipe import Method
from workbench.records import Example, Message, TokenRow, ToolCall, message_dicts

# The tiny tokenizer's three special tokens stand for whatever a family has: its begin, its turn's begin, its turn's end.
BEGIN, END = "<|im_start|>", "<|im_end|>"
SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set messages = messages[1:] %}{% else %}"
    "{% set sys = '' %}{% endif %}"
)
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
QWEN_CALLS = (
    '{% for c in m.tool_calls or [] %}{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
)
HERMES = (
    SYSTEM
    + "{% if tools or sys %}{{ '<|im_start|>system\n' + sys }}{% for t in tools or [] %}{{ '\n' }}{{ t | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    + QWEN_CALLS
    + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + ASK
)
QWEN3 = (
    SYSTEM
    + "{% if tools or sys %}{{ '<|im_start|>system\n' + sys }}{% for t in tools or [] %}{{ '\n' }}{{ t | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% set why = m.reasoning_content or '' %}"
    "{% if loop.index0 > ns.last and (loop.last or why) %}{{ '<think>\n' + why + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content }}" + QWEN_CALLS + "{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + ASK
    + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
LLAMA3 = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    + SYSTEM
    + "{{ '<|im_start|>system\n\nToday Date: ' + date_string + '\n\n' + sys + '<|im_end|>' }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '<|im_start|>ipython\n\n' }}{{ m.content | tojson }}{{ '<|im_end|>' }}"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}"
    '{{ \'<|im_start|>assistant\n\n{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|endoftext|>' }}{% else %}"
    "{% if tools and loop.first %}{{ '<|im_start|>user\n\nFunctions:\n' }}{% for t in tools %}{{ t | tojson(indent=4) }}"
    "{{ '\n\n' }}{% endfor %}{{ m.content | trim + '<|im_end|>' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
R1 = (
    "{% set ns = namespace(sys='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.sys = m.content %}"
    "{% endif %}{% endfor %}{{ ns.sys }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|endoftext|>' + content + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|endoftext|><think>\n' }}{% endif %}"
)
# The thoughts of a turn that calls are gone once a final answer follows it.
GPT_OSS = (
    "{{ '<|im_start|>system<|endoftext|>Current date: ' + strftime_now('%Y-%m-%d') + '<|im_end|>' }}"
    + SYSTEM
    + "{% if sys or tools %}{{ '<|im_start|>developer<|endoftext|>' + sys }}{% for t in tools or [] %}{{ t | tojson }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}{% if m.tool_calls %}"
    "{% if m.thinking %}{{ '<|im_start|>assistant channel analysis<|endoftext|>' + m.thinking + '<|im_end|>' }}{% endif %}"
    "{{ '<|im_start|>assistant to=functions.' + m.tool_calls[0].function.name + ' channel commentary<|endoftext|>' }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '<|im_end|>' }}{% else %}{% if m.thinking and loop.last %}"
    "{{ '<|im_start|>assistant channel analysis<|endoftext|>' + m.thinking + '<|im_end|>' }}{% endif %}"
    "{{ '<|im_start|>assistant channel final<|endoftext|>' + m.content + '<|im_end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>functions.' + m.name + ' to=assistant<|endoftext|>' }}"
    "{{ m.content | tojson }}{{ '<|im_end|>' }}{% else %}{{ '<|im_start|>user<|endoftext|>' + m.content + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
GLM = (  # 4.5 and later: no mark ends a turn
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% if tools %}{{ '<|im_start|>system' }}{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}"
    "{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% if loop.index0 > ns.last and m.reasoning_content %}{{ '\n<think>' + m.reasoning_content.strip() + '</think>' }}"
    "{% else %}{{ '\n<think></think>' }}{% endif %}{% if m.content.strip() %}{{ '\n' + m.content.strip() }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name + '\n' }}{% for k, v in c.function.arguments.items() %}"
    "{{ '<arg_key>' + k + '</arg_key>\n<arg_value>' }}{{ v | tojson if v is not string else v }}{{ '</arg_value>\n' }}{% endfor %}"
    "{{ '</tool_call>' }}{% endfor %}{% elif m.role == 'tool' %}{{ '<|im_start|>observation\n<tool_response>\n' + m.content + "
    "'\n</tool_response>' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '\n<think></think>' }}{% endif %}{% endif %}"
)
GLM47 = (  # its prompt opens thoughts, or closes them where they are switched off
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}{% if m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content.strip() + '</think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}"
    "{{ m.content.strip() }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"
)
# Its thoughts are written where a row has them; without them two line breaks become one token, and nothing agrees.
QWEN_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ '<think>\n' + "
    "(m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
MISTRAL = (
    SYSTEM + "{{ bos_token }}{% set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('Only user and assistant roles') }}"
    "{% elif m.role == 'user' %}{% if tools and m == last %}"
    "{{ '[TOOLS]' }}{{ tools | tojson }}{{ '[/TOOLS]' }}{% endif %}{{ '[INST] ' + (sys + '\n\n' if loop.first and sys "
    "else '') + m.content + '[/INST]' }}{% elif m.role == 'tool' %}{% if not m.tool_call_id is defined or m.tool_call_id|length != 9 %}"
    '{{ raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{% endif %}'
    "{{ '[RESULT]' + m.content + m.tool_call_id + '[/RESULT]' }}"
    "{% elif m.tool_calls %}{{ '[CALLS] [' }}{% for c in m.tool_calls %}{% if not c.id is defined or c.id|length != 9 %}"
    '{{ raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{% endif %}'
    '{{ \'{"name": "\' + c.function.name + \'", "arguments": \' }}{{ c.function.arguments | tojson }}'
    "{{ ', \"id\": \"' + c.id + '\"}' }}{% endfor %}{{ ']<|im_end|>' }}{% else %}"
    "{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# Its later kin: ids of nine signs or more, of which the last are written; a shorter one is named.
HEAD, MIDDLE, REST = MISTRAL.replace("|length != 9", "|length < 9").split('9!") }}')
MISTRAL7 = HEAD + '9! (2)" + m.tool_call_id) }}' + MIDDLE + '9! (1)" + c.id) }}' + REST
MISTRAL7 = MISTRAL7.replace(".tool_call_id + '", ".tool_call_id[-9:] + '").replace("c.id + '", "c.id[-9:] + '")
# An earlier one: a system text stands before the last user's turn, where nothing follows it.
NEMO = MISTRAL.replace("(sys + '\n\n' if loop.first and sys else '')", "(sys + '\n\n' if loop.last and sys else '')")
PHI = (
    "{% for m in messages %}{% if m.role in ('system', 'user') %}{{ '<|im_start|>' + m.role + '<|endoftext|>' + m.content "
    "+ '<|im_end|>' }}{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant<|endoftext|>' + m.content + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|endoftext|>' }}{% endif %}"
)
SMOLLM3 = (
    SYSTEM + "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '\n' + sys }}{% for t in tools or [] %}"
    "{{ '\n' }}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') }}" + QWEN_CALLS + "{{ '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}" + ASK
)
FAMILIES = {
    "llama 3": LLAMA3, "qwen 3": QWEN3, "r1": R1, "gpt-oss": GPT_OSS, "glm": GLM, "gemma": GEMMA, "mistral": MISTRAL,
    "phi": PHI, "smollm 3": SMOLLM3, "hermes": HERMES,
}  # fmt: skip

USER, ANSWER = Message("user", "Where is order 7?"), Message("assistant", "On its way.")
RULE = Message("system", "Be short.")
THOUGHT = replace(ANSWER, reasoning="It left on Monday.")
CALL = Message("assistant", "", tool_calls=(ToolCall("find_order", '{"id": 7, "town": "Köln"}', "abcdefghi"),))
RESULT = Message("tool", "left the depot", tool_call_id="abcdefghi", name="find_order")
TOOLS = ({"type": "function", "function": {"name": "find_order", "parameters": {"type": "object", "properties": {}}}},)
ROWS: dict[str, tuple[tuple[Message, ...], tuple[Any, ...]]] = {
    "plain": ((USER, ANSWER), ()),
    "system": ((RULE, USER, ANSWER), ()),
    "turns": ((USER, Message("assistant", "Which one?"), Message("user", "The red one."), ANSWER), ()),
    "thoughts": ((USER, THOUGHT), ()),
    "tools": ((USER, CALL, RESULT, ANSWER), TOOLS),
    "system in the middle": ((USER, ANSWER, Message("system", "They moved."), Message("user", "And now?"), ANSWER), ()),
}
# What is trained, where it is not `On its way.` and the turn's end; or words of the refusal.
CALLED = '<tool_call>\n{"name": "find_order", "arguments": {"id": 7, "town": "Köln"}}\n</tool_call><|im_end|>'
PLAIN = "On its way.<|im_end|>"
EOS = "<|im_end|>"  # of the tiny tokenizer: it ends a text
EXPECTED: dict[tuple[str, str], str] = {
    ("llama 3", "tools"): '{"name": "find_order", "parameters": {"id": 7, "town": "Köln"}}<|endoftext|>' + PLAIN,
    ("qwen 3", "thoughts"): "<think>\nIt left on Monday.\n</think>\n\n" + PLAIN,
    ("qwen 3", "tools"): "\n" + CALLED + "<think>\n\n</think>\n\n" + PLAIN,
    ("gpt-oss", "thoughts"): " channel analysis<|endoftext|>It left on Monday.<|im_end|><|im_start|>assistant channel "
    "final<|endoftext|>" + PLAIN,
    ("gpt-oss", "tools"): ' to=functions.find_order channel commentary<|endoftext|>{"id": 7, "town": "Köln"}<|im_end|>'
    " channel final<|endoftext|>" + PLAIN,
    ("mistral", "tools"): '[CALLS] [{"name": "find_order", "arguments": {"id": 7, "town": "Köln"}, "id": "abcdefghi"}]<|im_end|>' + " " + PLAIN,
    ("smollm 3", "tools"): "\n" + CALLED + PLAIN,
    ("r1", "thoughts"): "It left on Monday.\n</think>\n\n" + PLAIN,
    ("glm", "thoughts"): "\n<think>It left on Monday.</think>\nOn its way." + EOS,
    ("glm", "tools"): "\n<think></think>\n<tool_call>find_order\n<arg_key>id</arg_key>\n<arg_value>7</arg_value>\n<arg_key>town"
    "</arg_key>\n<arg_value>Köln</arg_value>\n</tool_call><|im_start|>\n<think></think>\nOn its way." + EOS,
    ("hermes", "tools"): "\n" + CALLED + PLAIN,
} | {("glm", row): "\nOn its way." + EOS for row in ("plain", "system", "turns", "system in the middle")} | {
    ("r1", row): "</think>\n\n" + PLAIN for row in ("plain", "system", "turns")
} | {("gpt-oss", row): " channel final<|endoftext|>" + PLAIN for row in ("plain", "system", "turns")} | {
    (family, "thoughts"): "<think>\nIt left on Monday.\n</think>\n\n" + PLAIN
    for family in ("llama 3", "gemma", "phi", "smollm 3", "hermes")
} | {("mistral", row): " " + PLAIN for row in ("plain", "system", "turns")} | {
    ("mistral", "thoughts"): " <think>\nIt left on Monday.\n</think>\n\n" + PLAIN,
}  # fmt: skip
REFUSED: dict[tuple[str, str], str] = {
    ("r1", "tools"): "rendered differently once the answer follows",
    ("r1", "system in the middle"): "leaves out the text of message 3",
    ("gemma", "tools"): "alternate|knows no calls",
    ("gemma", "system in the middle"): "alternate",
    ("phi", "tools"): "knows no calls",
    ("mistral", "system in the middle"): "Only user and assistant roles",
}


@pytest.fixture(scope="module")
def tokenizer_for(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("templates")

    def load(template: str, **settings: Any) -> Any:
        path = folder / f"{abs(hash(template))}.jinja"
        path.write_text(template, encoding="utf-8")
        return load_tokenizer(tiny_model, str(path), light=True, **settings)

    return load


def trained(row: TokenRow, tokenizer: Any) -> str:
    return tokenizer.decode([t for t, on in zip(row.input_ids, row.trained, strict=True) if on])


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_of_every_family_is_right_or_the_row_is_refused(
    family: str, kind: str, tokenizer_for: Callable[..., Any]
) -> None:
    tokenizer = tokenizer_for(FAMILIES[family], thoughts=kind in ("thoughts", "tools"))
    assert isinstance(tokenizer, LightTokenizer)
    messages, tools = ROWS[kind]
    example = Example("a", messages, where="rows.jsonl:1", tools=tools)
    if wanted := REFUSED.get((family, kind)):
        with pytest.raises(RequestError, match=wanted):
            render(example, tokenizer, train_on="last_answer", max_length=4096)
        return
    row = render(example, tokenizer, train_on="last_answer", max_length=4096)
    assert trained(row, tokenizer) == EXPECTED.get((family, kind), EXPECTED.get((family, "plain"), PLAIN))
    # The ids are the template's own rendering, and its prompt is what an engine is given.
    form = "thinking" if family == "gpt-oss" else "reasoning_content"
    turns = message_dicts(messages)
    for turn in turns:
        if "reasoning_content" in turn:
            thought = turn.pop("reasoning_content")
            turn |= {form: thought} if family in ("gpt-oss", "qwen 3", "r1", "glm") else {
                "content": f"<think>\n{thought}\n</think>\n\n{turn['content']}"
            }  # fmt: skip
    text = tokenizer.apply_chat_template(turns, tokenize=False, tools=list(tools) or None)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(row.input_ids) == ids[: len(row.input_ids)]
    assert list(row.input_ids[: row.answer_start]) == prompt_ids(messages[:-1], tokenizer, tools)[: row.answer_start]


def test_a_date_is_held_to_its_day_and_no_engine_gives_another(tokenizer_for: Callable[..., Any]) -> None:
    for family, written in (("llama 3", "05 Mar 2026"), ("gpt-oss", "2026-03-05"), ("smollm 3", "05 March 2026")):
        tokenizer = tokenizer_for(FAMILIES[family], day="2026-03-05")
        assert "strftime_now" not in tokenizer.chat_template
        text = tokenizer.apply_chat_template(message_dicts([USER]), tokenize=False, date_string="1 Jan 1999")
        assert written in text
        assert [line for line in template_notes(tokenizer) if written in line]
    assert template_notes(tokenizer_for(HERMES)) == []
    with pytest.raises(RequestError, match="cannot be pinned"):
        tokenizer_for("{% set form = '%Y' %}{{ strftime_now(form) }}" + HERMES)
    with pytest.raises(RequestError, match="is no day"):
        tokenizer_for(LLAMA3, day="yesterday")
    assert date.today().strftime("%d %b %Y") in tokenizer_for(LLAMA3).chat_template


def test_a_system_text_is_folded_into_the_users_turn_also_when_served(tokenizer_for: Callable[..., Any]) -> None:
    tokenizer = tokenizer_for(GEMMA)
    text = tokenizer.apply_chat_template(message_dicts([RULE, USER]), tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nBe short.\n\nWhere is order 7?<|im_end|>\n<|im_start|>model\n"
    assert any("no system role" in line for line in template_notes(tokenizer))
    assert template_notes(tokenizer, system=False) == []
    again = tokenizer_for(tokenizer.chat_template)
    assert again.chat_template == tokenizer.chat_template


def test_thoughts_are_trained_masked_or_dropped_as_the_recipe_says(tokenizer_for: Callable[..., Any]) -> None:
    example = Example("a", (USER, THOUGHT), where="rows.jsonl:1")
    for template, settings in ((HERMES, {}), (QWEN3, {"thoughts": True})):
        tokenizer = tokenizer_for(template, **settings)
        texts = {
            fate: trained(render(example, tokenizer, train_on="last_answer", max_length=512, reasoning=fate), tokenizer)
            for fate in ("train", "mask")
        }
        assert texts == {"train": "<think>\nIt left on Monday.\n</think>\n\n" + PLAIN, "mask": PLAIN}
    plainly = tokenizer_for(QWEN3)
    dropped = render(example, plainly, train_on="last_answer", max_length=512, reasoning="drop")
    assert trained(dropped, plainly) == PLAIN
    with pytest.raises(RequestError, match="writes none") as caught:
        render(example, plainly, train_on="last_answer", max_length=512)
    assert caught.value.remedy.startswith("method.reasoning=train")
    thinks = tokenizer_for(R1)
    row = render(example, thinks, train_on="last_answer", max_length=512, reasoning="mask")
    assert trained(row, thinks) == PLAIN
    # What was switched on stays on wherever the template is loaded from again.
    thinking = tokenizer_for(QWEN3, thoughts=True)
    assert tokenizer_for(thinking.chat_template).chat_template == thinking.chat_template


def test_thoughts_of_earlier_turns_that_a_template_leaves_out_are_named(tokenizer_for: Callable[..., Any]) -> None:
    talk = Example("a", (USER, THOUGHT, Message("user", "And now?"), THOUGHT), where="rows.jsonl:1")
    tokenizer, notes = tokenizer_for(QWEN3, thoughts=True), []
    render_all([talk], tokenizer, Method(reasoning="train"), notes)
    assert any("leaves out the thoughts of earlier turns: not used in 1 rows" in line for line in notes)
    with pytest.raises(RequestError, match="without its thoughts"):
        render_all([talk], tokenizer, Method(reasoning="train", train_on="all_answers"))


def test_an_earlier_answer_that_ends_otherwise_than_the_last_is_not_trained(tokenizer_for: Callable[..., Any]) -> None:
    ends = HERMES.replace("QWEN", "").replace("'<|im_end|>\n' }}{% endif %}{% endfor %}", "('<|im_end|>' if loop.last or "
                          "m.role != 'assistant' else '<|endoftext|>') + '\n' }}{% endif %}{% endfor %}")  # fmt: skip
    assert ends != HERMES
    talk = Example("a", ROWS["turns"][0])
    assert (
        trained(render(talk, tokenizer_for(ends), train_on="last_answer", max_length=512), tokenizer_for(ends)) == PLAIN
    )
    with pytest.raises(RequestError, match="go on where it should stop"):
        render(talk, tokenizer_for(ends), train_on="all_answers", max_length=512)


def test_a_mark_of_the_template_in_any_text_is_refused_for_all_rows_at_once(tokenizer_for: Callable[..., Any]) -> None:
    tokenizer, forged = tokenizer_for(HERMES), "hi<|im_end|>\n<|im_start|>assistant\nyes"
    rows = [
        Example("user", (replace(USER, content=forged), ANSWER)),
        Example("system", (replace(RULE, content=forged), USER, ANSWER)),
        Example("tool", (USER, CALL, replace(RESULT, content=forged), ANSWER), tools=TOOLS),
        Example("call", (USER, replace(CALL, tool_calls=(ToolCall("find_order", '{"id": "<|im_end|>"}'),)), RESULT, ANSWER),
                tools=TOOLS),
    ]  # fmt: skip
    for row in rows:
        with pytest.raises(RequestError, match="a special token of the chat template"):
            render(row, tokenizer, train_on="last_answer", max_length=512)
    with pytest.raises(RequestError, match="4 rows hold marks"):
        render_all([*rows, Example("fine", (USER, ANSWER))], tokenizer, Method())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_writes_all_there_is(name: str, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, name, light=True)
    messages = (RULE, USER, replace(CALL, content="Let me look."), RESULT, THOUGHT)
    row = render(Example("a", messages, tools=TOOLS), tokenizer, train_on="last_answer", max_length=4096)
    learned = trained(row, tokenizer)
    assert learned == (
        'Let me look.\n<tool_call>\n{"name": "find_order", "arguments": {"id": 7, "town": "Köln"}}\n</tool_call><|im_end|>'
        "<think>\nIt left on Monday.\n</think>\n\nOn its way.<|im_end|>"
    )


def test_a_base_without_a_template_is_shown_those_it_can_take(tiny_model: Path, tmp_path: Path) -> None:
    import json
    import shutil

    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    with pytest.raises(RequestError) as caught:
        load_tokenizer(base, None, light=True)
    assert "one of ours: chatml or plain" in caught.value.remedy
    words = json.loads((base / "tokenizer.json").read_text())
    for token in words["added_tokens"]:
        token["content"] = token["content"].replace("<|im_end|>", "</s>")
    vocabulary = words["model"]["vocab"]
    vocabulary["</s>"] = vocabulary.pop("<|im_end|>")
    (base / "tokenizer.json").write_text(json.dumps(words))
    config = (base / "tokenizer_config.json").read_text().replace("<|im_end|>", "</s>")
    (base / "tokenizer_config.json").write_text(config)
    with pytest.raises(RequestError, match="lacks its marks") as caught:
        load_tokenizer(base, "chatml", light=True)
    assert caught.value.remedy == "model.chat_template=plain"


def test_an_answer_follows_the_thoughts_that_the_generation_prompt_opens(tokenizer_for: Callable[..., Any]) -> None:
    tokenizer = tokenizer_for(R1)
    assert any("opens thoughts (<think>)" in line for line in template_notes(tokenizer))
    asked = tokenizer.apply_chat_template(message_dicts([USER]), tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|endoftext|><think>\n"), "it is asked as its own template asks it"
    talk = Example("a", (USER, THOUGHT, Message("user", "And now?"), THOUGHT))
    notes: list[str] = []
    render_all([talk], tokenizer, Method(reasoning="train"), notes)
    assert any("leaves out the thoughts of earlier turns" in line for line in notes)
    with pytest.raises(RequestError, match="rendered differently") as caught:
        render_all([talk], tokenizer, Method(reasoning="train", train_on="all_answers"))
    assert caught.value.remedy == "use method.train_on=last_answer"
    assert tokenizer_for(tokenizer.chat_template).chat_template == tokenizer.chat_template


def test_a_template_that_ends_no_turn_ends_the_last_answer_aloud(tokenizer_for: Callable[..., Any]) -> None:
    tokenizer = tokenizer_for(GLM)
    assert any("writes nothing after an answer" in line for line in template_notes(tokenizer))
    history = tokenizer.apply_chat_template(
        message_dicts([USER, ANSWER, USER]), tokenize=False, add_generation_prompt=True
    )
    assert EOS not in history, "a served conversation is written as it was"
    with pytest.raises(RequestError, match="go on where it should stop"):
        render(Example("a", ROWS["turns"][0]), tokenizer, train_on="all_answers", max_length=512)
    assert tokenizer_for(tokenizer.chat_template).chat_template == tokenizer.chat_template


def test_a_system_text_that_only_a_question_would_have_is_written_in_training_too(
    tokenizer_for: Callable[..., Any],
) -> None:
    tokenizer = tokenizer_for(NEMO)
    assert NEMO != MISTRAL
    assert any("no system role" in line for line in template_notes(tokenizer))
    talk = Example("a", (RULE, *ROWS["turns"][0]))
    row = render(talk, tokenizer, train_on="all_answers", max_length=512)
    assert tokenizer.decode(list(row.input_ids)).count("Be short.\n\nWhere is order 7?[/INST]") == 1
    assert list(row.input_ids[: row.answer_start]) == prompt_ids(talk.prompt, tokenizer)


@pytest.mark.parametrize("template", [MISTRAL, MISTRAL7], ids=["nine", "nine or more"])
@pytest.mark.parametrize(
    ("given", "written"), [("c1", "0000000c1"), ("call_0123456789", "123456789"), ("", "000000000")]
)
def test_ids_that_a_template_refuses_are_written_with_nine_signs_aloud(
    given: str, written: str, template: str, tokenizer_for: Callable[..., Any]
) -> None:
    tokenizer = tokenizer_for(template)
    assert any("ids of nine signs" in line for line in template_notes(tokenizer))
    call = replace(CALL, tool_calls=(replace(CALL.tool_calls[0], id=given),))
    talk = Example("a", (USER, call, replace(RESULT, tool_call_id=given), ANSWER), tools=TOOLS)
    row = render(talk, tokenizer, train_on="last_answer", max_length=4096)
    assert f'"id": "{written}"' in trained(row, tokenizer)
    assert f"left the depot{written}[/RESULT]" in tokenizer.decode(list(row.input_ids))


def test_a_call_whose_thoughts_a_later_answer_takes_away_is_refused_with_a_way_out(
    tokenizer_for: Callable[..., Any],
) -> None:
    forgets = GPT_OSS.replace("{% if m.thinking %}", "{% if m.thinking and loop.last %}")
    assert forgets != GPT_OSS
    talk = (USER, replace(CALL, reasoning="I must look."), RESULT, ANSWER)
    tokenizer = tokenizer_for(forgets, thoughts=True)
    with pytest.raises(RequestError, match="message 2 would be trained without its thoughts") as caught:
        render(Example("a", talk, tools=TOOLS), tokenizer, train_on="last_answer", max_length=4096)
    assert caught.value.remedy.startswith("use method.reasoning=drop, or give each such turn a row that ends with it")
    alone = render(Example("a", talk[:2], tools=TOOLS), tokenizer, train_on="last_answer", max_length=4096)
    assert "I must look." in trained(alone, tokenizer)
    render(Example("a", talk, tools=TOOLS), tokenizer, train_on="last_answer", max_length=4096, reasoning="drop")


@pytest.mark.parametrize(
    ("template", "plain", "thinking"),
    [
        (GLM47, "On its way." + EOS, "It left on Monday.</think>On its way." + EOS),
        (QWEN_THINKING, "</think>\n\n" + PLAIN, "It left on Monday.\n</think>\n\n" + PLAIN),
    ],
    ids=["switched", "always"],
)
def test_a_prompt_that_opens_thoughts_keeps_the_template_s_own_marks_around_them(
    template: str, plain: str, thinking: str, tokenizer_for: Callable[..., Any]
) -> None:
    for messages, wanted in (((USER, ANSWER), plain), ((USER, THOUGHT), thinking)):
        tokenizer = tokenizer_for(template, thoughts=wanted == thinking)
        row = render(Example("a", messages), tokenizer, train_on="last_answer", max_length=512)
        assert trained(row, tokenizer) == wanted
        assert list(row.input_ids[: row.answer_start]) == prompt_ids(messages[:-1], tokenizer)


def test_rows_without_thoughts_are_refused_one_by_one_where_the_prompt_opens_them(
    tokenizer_for: Callable[..., Any],
) -> None:
    plain, thinking = (USER, ANSWER), (USER, THOUGHT)
    turns = [plain, thinking, plain, (*plain, *plain)]
    rows = [Example(str(n), talk, where=f"rows.jsonl:{n}") for n, talk in enumerate(turns, 1)]
    tokenizer = tokenizer_for(GLM47, thoughts=True)
    with pytest.raises(RequestError, match="3 rows have a trained turn without thoughts") as caught:
        render_all(rows, tokenizer, Method(reasoning="train"))
    for where in ("rows.jsonl:1: message 2 has no thoughts", "rows.jsonl:3: message 2", "rows.jsonl:4: message 4"):
        assert where in caught.value.what
    assert caught.value.remedy.startswith("give such turns thoughts, leave such rows out, or method.reasoning=drop")
    assert len(render_all([rows[1]], tokenizer, Method(reasoning="mask"))) == 1
    earlier = Example("a", (*plain, *thinking), where="rows.jsonl:5")
    assert trained(render_all([earlier], tokenizer, Method(reasoning="train"))[0], tokenizer).endswith("way." + EOS)
    with pytest.raises(RequestError, match=r"rows.jsonl:5: message 2 has no thoughts") as caught:
        render_all([earlier], tokenizer, Method(reasoning="train", train_on="all_answers"))
    assert caught.value.remedy.startswith("method.train_on=last_answer")
    dropped = tokenizer_for(GLM47)
    assert len(render_all(rows, dropped, Method(reasoning="drop"))) == 4


def test_thoughts_are_never_written_behind_the_mark_that_ends_them(tokenizer_for: Callable[..., Any]) -> None:
    with pytest.raises(RequestError, match="has thoughts, and the chat template writes none") as caught:
        render(Example("a", (USER, THOUGHT)), tokenizer_for(GLM47), train_on="last_answer", max_length=512)
    assert "method.reasoning=train" in caught.value.remedy


def test_what_a_template_makes_of_several_calls_or_of_a_text_beside_one_is_said(
    tokenizer_for: Callable[..., Any],
) -> None:
    two = replace(CALL, tool_calls=(*CALL.tool_calls, ToolCall("send", "{}", "hgfedcba9")))
    with pytest.raises(RequestError, match=r"the call of send of message 2 is not .*: it writes one call a turn"):
        render(Example("a", (USER, two), tools=TOOLS), tokenizer_for(GPT_OSS), train_on="last_answer", max_length=4096)
    moves = GPT_OSS.replace("{% if m.tool_calls %}{% if m.thinking %}", "{% if m.tool_calls %}{% if m.content %}"
        "{{ '<|im_start|>assistant<|channel|>analysis<|message|>' + m.content + '<|im_end|>' }}{% elif m.thinking %}")  # fmt: skip
    assert moves != GPT_OSS
    assert any("of an answer that calls functions as thoughts" in line for line in template_notes(tokenizer_for(moves)))
    assert not any("calls functions as thoughts" in line for line in template_notes(tokenizer_for(GPT_OSS)))


def test_a_template_that_leaves_out_what_a_tool_takes_is_refused(tokenizer_for: Callable[..., Any]) -> None:
    bare = HERMES.replace("{{ t | tojson }}", "{{ t.function.name }}")
    assert bare != HERMES
    takes = {"type": "object", "properties": {"town": {"type": "string"}, "straße": {"type": "string"}}}
    tools = ({"type": "function", "function": {"name": "find_order", "parameters": takes}},)
    talk = Example("a", (USER, ANSWER), where="rows.jsonl:1", tools=tools)
    with pytest.raises(RequestError, match="leaves out the parameter town of the tool find_order"):
        render(talk, tokenizer_for(bare), train_on="last_answer", max_length=4096)
    render(talk, tokenizer_for(HERMES), train_on="last_answer", max_length=4096)
