"""Calls of functions are read in whatever syntax a model writes, and compared by what they say, not how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workbench.errors import RequestError
from workbench.evaluation import scorers
from workbench.evaluation.answers import Prediction, wanted_of
from workbench.evaluation.report import build_report
from workbench.evaluation.scorers.call_reading import read_calls
from workbench.recipe.schema import Evaluate
from workbench.records import Example, Message, ToolCall, calls_text

EVALUATE = Evaluate(scorer="tool_calls", resamples=1000)
PARIS = ToolCall("get_weather", '{"city": "Paris", "days": 3}')
OSLO = ToolCall("get_weather", '{"city": "Oslo", "days": 1}')
DECLINED = "None of these functions can do that."
HALF = '{"name": "get_weather", "arguments": {"city": "Paris", "days"'

# The same call as ten families write it.
SPELLINGS = {
    "Hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
    "Hermes, its end cut off": '<tool_call>{"name": "get_weather", "arguments": {"days": 3, "city": "Paris"}}',
    "Hermes after words": 'Let me look.\n<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
    "</tool_call>",
    "arguments as text": json.dumps({"name": "get_weather", "arguments": '{"city": "Paris", "days": 3}'}),
    "OpenAI": json.dumps([{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments":
                          '{"city": "Paris", "days": 3}'}}]),
    "Qwen3-Coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "GLM": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "Llama 3": '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
    "Llama 3, with its tag": '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
    "Llama 3.1's function tag": '<function=get_weather>{"city": "Paris", "days": 3}</function>',
    "Mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]',
    "Mistral, name and arguments": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}',
    "Mistral, with an id": '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris", "days": 3}',
    "gpt-oss": '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}'
    "<|call|>",
    "DeepSeek V3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "DeepSeek V3.1": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "Kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_calls_section_end|>',
    "Phi-4": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]<|/tool_call|>',
    "a JSON list": '[{"name": "get_weather", "arguments": {"city": " Paris ", "days": 3.0}}]',
    "a fence": '```json\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n```',
    "Python": 'get_weather(city="Paris", days=3)',
    "Python in a list": "[get_weather(days=3, city='Paris')]",
}  # fmt: skip


def right(expected: str, answer: str) -> float:
    return scorers.score(EVALUATE, expected, answer)["exact_match"]


def valid(answer: str) -> float:
    return scorers.score(EVALUATE, DECLINED, answer)["validity"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_call_is_right_in_every_syntax_that_models_write(spelling: str) -> None:
    assert right(calls_text([PARIS]), SPELLINGS[spelling]) == 1.0
    assert right(calls_text([OSLO]), SPELLINGS[spelling]) == 0.0
    assert right(DECLINED, SPELLINGS[spelling]) == 0.0


def test_parallel_calls_are_right_in_any_order_and_each_counts_once() -> None:
    wanted = calls_text([PARIS, OSLO])
    assert right(wanted, calls_text([OSLO, PARIS])) == 1.0
    assert right(wanted, "[get_weather(city='Oslo', days=1), get_weather(city='Paris', days=3)]") == 1.0
    assert right(wanted, "get_weather(city='Oslo', days=1)\nget_weather(city='Paris', days=3)") == 1.0
    assert right(wanted, calls_text([PARIS, PARIS])) == 0.0
    assert right(wanted, calls_text([PARIS])) == 0.0
    assert right(wanted, calls_text([PARIS, OSLO, OSLO])) == 0.0
    assert right(calls_text([PARIS, PARIS]), calls_text([PARIS])) == 0.0


def test_parallel_calls_are_paired_as_well_as_any_pairing_can() -> None:
    # Taken greedily, the first wanted call would take the only given one that the second accepts.
    wanted = calls_text([ToolCall("f", '{"a": 1}'), ToolCall("f", '{"a": 1}')], acceptable=[{"a": [2]}, {}])
    assert right(wanted, "[f(a=1), f(a=2)]") == right(wanted, "[f(a=2), f(a=1)]") == 1.0
    assert right(wanted, "[f(a=2), f(a=2)]") == 0.0


@pytest.mark.parametrize(
    ("wanted", "given", "equal"),
    [
        (1, 1.0, True), (1, True, False), (True, 1, False), (0, False, False), (1, "1", False), ("1", 1, False),
        ("Paris", " Paris\n", True), ("Paris", "paris", False), (None, None, True), (None, "", False), ([], [], True),
        ([1, 2], [1.0, 2.0], True), ([1, 2], [2, 1], False), ({"a": [1]}, {"a": [1.0]}, True), ({"a": 1}, {}, False),
        (10**20, 1e20, True), (0.1 + 0.2, 0.3, False), ("ä", "a\u0308", False),
    ],
)  # fmt: skip
def test_values_are_compared_as_json_values(wanted: Any, given: Any, equal: bool) -> None:
    answer = calls_text([ToolCall("f", json.dumps({"x": given}))])
    assert right(calls_text([ToolCall("f", json.dumps({"x": wanted}))]), answer) == float(equal)


def test_bare_text_of_a_syntax_without_types_may_be_a_number_or_the_text() -> None:
    def written(value: str) -> str:
        return f"<tool_call><function=f><parameter=x>\n{value}\n</parameter></function></tool_call>"

    for wanted, text in ((5, "5"), ("5", "5"), (True, "True"), (True, "true"), ([1], "[1]"), (None, "null")):
        assert right(calls_text([ToolCall("f", json.dumps({"x": wanted}))]), written(text)) == 1.0
    assert right(calls_text([ToolCall("f", '{"x": 5}')]), written("six")) == 0.0


def test_arguments_that_are_missing_added_or_renamed_are_wrong() -> None:
    wanted = calls_text([PARIS])
    for answer in (
        'get_weather(city="Paris")', 'get_weather(city="Paris", days=3, unit="C")', 'get_weather(town="Paris", days=3)',
        'weather(city="Paris", days=3)', 'Get_Weather(city="Paris", days=3)',
    ):  # fmt: skip
        assert right(wanted, answer) == 0.0


def test_acceptable_values_and_arguments_are_right_and_no_others() -> None:
    call = ToolCall("book", '{"city": "New York"}')
    wanted = calls_text([call], acceptable=[{"city": ["NYC", "New York City"], "class": ["economy"]}])
    assert right(wanted, 'book(city="NYC")') == right(wanted, 'book(city="New York", **{})') + 1.0 == 1.0
    assert right(wanted, 'book(city="New York", class_="economy")') == 0.0
    assert right(wanted, '{"name": "book", "arguments": {"city": "New York", "class": "economy"}}') == 1.0
    assert right(wanted, '{"name": "book", "arguments": {"city": "New York", "class": "first"}}') == 0.0
    assert right(wanted, '{"name": "book", "arguments": {"class": "economy"}}') == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        HALF, f"<tool_call>\n{HALF}", f"Sure: {HALF}", f"[TOOL_CALLS][{HALF}", "<tool_call>\n</tool_call>",
        "</tool_call>", "<tool_call>I will look</tool_call>", '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "f(a=1) returns 2", "f(1, 2)", "f(a=1, a=2)", "f(*x)",
        '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>', "[TOOL_CALLS]", "f(a=open('x'))",
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', "<function=f><parameter=a>1</function>",
        '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"',
        'I call {"name": "f", "arguments": {"a": 1}} now.',
    ],
)  # fmt: skip
def test_a_broken_call_is_no_call_and_no_declining_either(answer: str) -> None:
    assert valid(answer) == 0.0
    assert right(DECLINED, answer) == 0.0
    assert right(calls_text([PARIS]), answer) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        DECLINED, "", "Which city?", '{"name": "Bob", "age": 3}', "[]", "{}", "42", "Call get_weather(city='Paris').",
        "(see above)", "```python\nx = 1\n```", "[" * 5000, "The weather (in Paris) is fine.",
    ],
)  # fmt: skip
def test_an_answer_without_a_call_is_right_where_none_is_wanted(answer: str) -> None:
    assert right(DECLINED, answer) == valid(answer) == 1.0
    assert right(calls_text([PARIS]), answer) == 0.0


def test_a_very_long_answer_is_scored_in_no_time() -> None:
    for answer in ("[" * 100_000, "f(" * 20_000, "<tool_call>" * 20_000, "x" * 1_000_000, '{"name": ' * 20_000):
        assert right(calls_text([PARIS]), answer) == 0.0


def test_a_wanted_answer_with_a_broken_call_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        right(f"<tool_call>{HALF}", DECLINED)


def test_what_a_row_wants_is_its_calls_with_the_acceptable_values_of_its_column() -> None:
    def row(acceptable: Any) -> Example:
        said = Message("assistant", "I look.", tool_calls=(PARIS,))
        return Example("r", (Message("user", "Weather?"), said), where="rows.jsonl:4", meta={"ok": acceptable})

    assert row(None).answer == wanted_of(row(None), "ok") == "I look.\n" + calls_text([PARIS])
    assert right(wanted_of(row([{"days": ["three"]}]), "ok"), 'get_weather(city="Paris", days="three")') == 1.0
    assert right(wanted_of(row([{"days": ["three"]}])), 'get_weather(city="Paris", days="three")') == 0.0
    for wrong in ([], [{}, {}], {"days": [1]}, ["days"], [{"days": 1}]):
        with pytest.raises(RequestError, match="each of its 1 calls") as raised:
            wanted_of(row(wrong), "ok")
        assert raised.value.where == "rows.jsonl:4"


def predicted(pairs: list[tuple[str, str]]) -> list[Prediction]:
    return [Prediction(f"{n}", "", answer, wanted, "stop", 1, 1, 0.1) for n, (wanted, answer) in enumerate(pairs)]


def test_the_report_tells_calls_names_arguments_and_rows_without_a_call_apart() -> None:
    wanted = calls_text([PARIS])
    calls = [(wanted, wanted)] * 10 + [(wanted, 'get_weather(city="Paris", days=4)')] * 10 + [(wanted, DECLINED)] * 10
    none = [(DECLINED, DECLINED)] * 15 + [(DECLINED, wanted)] * 5
    report = build_report(
        "t", EVALUATE, {"base_few_shot": predicted(calls + none), "student": predicted(calls + none)}, {}, 7
    )
    values = {name: cell["value"] for name, cell in report["arms"]["student"].items()}
    assert values["exact_match"] == pytest.approx(25 / 50)
    assert values["call_accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert values["name_accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert values["no_call_accuracy"] == pytest.approx(3 / 4)
    # 30 right of 60 wanted and 50 given, five calls of which nobody asked for.
    assert values["argument_f1"] == pytest.approx(2 * 30 / (60 + 50), abs=1e-6)
    for name in ("call_accuracy", "no_call_accuracy", "name_accuracy", "argument_f1"):
        low, high = (report["arms"]["student"][name][end] for end in ("ci_low", "ci_high"))
        assert 0 < low < values[name] < high < 1
    slices = {(part["field"], part["value"]): part["n"] for part in report["slices"]}
    assert slices[("label", "no call")] == 20
    assert slices[("label", "one call")] == 30


def test_no_accuracy_is_told_of_rows_that_there_are_none_of() -> None:
    wanted = calls_text([PARIS])
    report = build_report("t", EVALUATE, {"base": predicted([(wanted, wanted), (wanted, DECLINED)])}, {}, 7)
    assert "no_call_accuracy" not in report["arms"]["base"]
    assert report["arms"]["base"]["call_accuracy"]["value"] == 0.5


def test_reading_gives_every_call_in_the_order_it_was_made() -> None:
    text = f"<think-not>\n{calls_text([PARIS, OSLO])}"
    assert [call.arguments["city"] for call in read_calls(text).calls] == ["Paris", "Oslo"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 60_000,
        "<tool_call><function=f>" + "</parameter><parameter=a>" * 40_000 + "</function></tool_call>",
        "<tool_call>f" + "<arg_key>" * 60_000 + "</tool_call>",
        "<tool_call>f" + "<arg_key>a</arg_key><arg_value>" * 30_000 + "</tool_call>",
        "<|message|>" + "to=functions.f " * 60_000,
        "<|tool_call_begin|>" * 40_000,
        "<|tool_call_begin|>f<|tool_call_argument_begin|>x" * 20_000,
    ],
    ids=["calls", "parameters", "keys", "values", "channels", "names", "arguments"],
)
def test_an_answer_full_of_marks_that_never_close_is_broken_and_takes_no_hour(text: str) -> None:
    read = read_calls(text)
    assert read.broken
    assert not read.calls


def test_a_call_that_is_begun_before_another_is_ended_is_broken_in_every_syntax() -> None:
    for text in (
        "<|tool_call_begin|>functions.f:0<|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "<tool_call>f<arg_key>a<arg_key>b</arg_key><arg_value>1</arg_value></tool_call>",
        "<tool_call><function=f><parameter=a>1<parameter=b>2</parameter></function></tool_call>",
    ):
        assert read_calls(text).broken, text
