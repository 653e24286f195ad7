"""The loss mask by the chat template: what is trained is proven to be the answer and its stop token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.data.chat import TooLongError, few_shot, load_tokenizer, prompt_ids, render, render_all
from workbench.errors import RequestError
from workbench.recipe import Method, Teach
from workbench.records import Example, Message, message_dicts

LLAMA3 = (
    "{{ '<|im_start|>' }}{% for m in messages %}{{ '<|endoftext|>' + m['role'] + '\n\n' + m['content'] | trim "
    "+ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|endoftext|>assistant\n\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
NO_STOP = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"  # noqa: E501
BARE = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
UPPER = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | upper) + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model, None)


def example(*turns: tuple[str, str]) -> Example:
    return Example("row-7", tuple(Message(role, text) for role, text in turns), where="rows.jsonl:7")  # type: ignore[arg-type]


SIMPLE = example(("system", "Be short."), ("user", "What is it?"), ("assistant", '{"category": "Copyleft"}'))
TALK = example(("user", "one"), ("assistant", "uno"), ("user", "two"), ("assistant", "dos"))


def trained_text(row: Any, tokenizer: Any) -> str:
    return tokenizer.decode([t for t, on in zip(row.input_ids, row.trained, strict=True) if on])


def show(example_: Example, tokenizer: Any, train_on: str = "last_answer", max_length: int = 512) -> Any:
    return render(example_, tokenizer, train_on=train_on, max_length=max_length)


def test_the_answer_and_its_stop_token_are_trained_and_the_newline_after_it_is_not(tokenizer: Any) -> None:
    row = show(SIMPLE, tokenizer)
    assert trained_text(row, tokenizer) == '{"category": "Copyleft"}<|im_end|>'
    assert row.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.trained[-1]
    assert (row.id, row.where) == ("row-7", "rows.jsonl:7")


def test_the_untrained_part_is_exactly_what_an_engine_is_given(tokenizer: Any) -> None:
    row = show(SIMPLE, tokenizer)
    prompt = prompt_ids(SIMPLE.prompt, tokenizer)
    assert list(row.input_ids[: row.trained.index(True)]) == prompt
    assert prompt == tokenizer.apply_chat_template(
        message_dicts(SIMPLE.prompt), add_generation_prompt=True, return_dict=False
    )


def test_only_the_last_answer_is_trained_or_all_of_them(tokenizer: Any) -> None:
    assert trained_text(show(TALK, tokenizer), tokenizer) == "dos<|im_end|>"
    assert trained_text(show(TALK, tokenizer, "all_answers"), tokenizer) == "uno<|im_end|>dos<|im_end|>"


@pytest.mark.parametrize("answer", ["plain", "ümläut — ☃ 利用", "  padded\n", "a\n\nb", "{}"])
def test_any_text_is_found_again_whole(tokenizer: Any, answer: str) -> None:
    row = show(example(("user", "?"), ("assistant", answer)), tokenizer)
    assert trained_text(row, tokenizer).removesuffix("<|im_end|>").strip() == answer.strip()


def test_a_template_that_trims_and_ends_turns_without_a_newline_works(tokenizer: Any) -> None:
    tokenizer.chat_template = LLAMA3
    row = show(example(("user", " hi "), ("assistant", " there ")), tokenizer)
    assert trained_text(row, tokenizer) == "there<|im_end|>"


def test_an_empty_thinking_block_belongs_to_the_prompt_in_training_and_in_use(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    row = show(SIMPLE, tokenizer)
    assert trained_text(row, tokenizer) == '{"category": "Copyleft"}<|im_end|>'
    assert list(row.input_ids[: row.trained.index(True)]) == prompt_ids(SIMPLE.prompt, tokenizer)
    with pytest.raises(RequestError, match="train_on=last_answer"):  # earlier turns lose their block
        show(TALK, tokenizer, "all_answers")


def refusal(row: Example, tokenizer: Any, **settings: Any) -> str:
    with pytest.raises(RequestError) as caught:
        show(row, tokenizer, **settings)
    assert caught.value.where == "rows.jsonl:7"
    return str(caught.value)


def test_an_answer_cut_by_max_length_is_refused_with_the_length_that_fits(tokenizer: Any) -> None:
    length = len(show(SIMPLE, tokenizer).input_ids)
    assert f"method.max_length={length}" in refusal(SIMPLE, tokenizer, max_length=length - 1)
    assert len(show(SIMPLE, tokenizer, max_length=length).input_ids) == length


def test_only_rows_that_are_too_long_are_dropped_and_only_where_asked(tokenizer: Any) -> None:
    longer = example(("user", "Why, why, why?"), ("assistant", "Because of this and that"))
    length = len(show(SIMPLE, tokenizer).input_ids)
    wanted = Method(max_length=length, too_long="drop")
    assert [len(row.input_ids) for row in render_all([SIMPLE, longer, SIMPLE], tokenizer, wanted)] == [length, length]
    with pytest.raises(TooLongError):
        render_all([SIMPLE, longer], tokenizer, Method(max_length=length))
    with pytest.raises(RequestError, match="nothing would be trained"):
        render_all([example(("user", "?"), ("assistant", " "))], tokenizer, wanted)


def test_on_policy_a_prompt_needs_room_for_the_students_own_answer_which_may_be_longer(tokenizer: Any) -> None:
    row = show(SIMPLE, tokenizer)
    room = len(row.input_ids) - row.answer_start + 1
    teach = Teach(max_new_tokens=room)
    tight = Method(max_length=row.answer_start + room - 1, distil=["on_policy"], teach=teach)
    with pytest.raises(TooLongError, match=f"{row.answer_start} tokens, and an answer of {room} may follow") as caught:
        render_all([SIMPLE], tokenizer, tight)
    assert caught.value.where == row.where
    assert render_all([SIMPLE], tokenizer, replace(tight, max_length=tight.max_length + 1)) == [row]
    assert render_all([SIMPLE], tokenizer, replace(tight, distil=["text"])) == [row]
    longer = example(("system", "Be short."), ("user", "What is it??"), ("assistant", "No"))
    assert len(show(longer, tokenizer).input_ids) < len(row.input_ids)
    dropped = replace(tight, max_length=tight.max_length + 1, too_long="drop")
    assert render_all([longer, SIMPLE], tokenizer, dropped) == [row]


def test_a_row_that_trains_nothing_is_refused(tokenizer: Any) -> None:
    assert "nothing would be trained" in refusal(example(("user", "?"), ("assistant", " \n")), tokenizer)
    assert "does not end with the assistant" in refusal(example(("user", "?")), tokenizer)


def test_a_template_that_trains_everything_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = BARE
    assert "every token would be trained" in refusal(SIMPLE, tokenizer)


def test_an_untrained_stop_token_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_STOP
    assert "no stop token" in refusal(SIMPLE, tokenizer)


def test_a_role_the_template_cannot_render_is_refused_in_the_templates_words(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM + LLAMA3
    assert "System role not supported" in refusal(SIMPLE, tokenizer)


def test_an_answer_the_template_changes_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = UPPER
    assert "not the answer" in refusal(SIMPLE, tokenizer)


def test_an_answer_that_writes_a_special_token_is_refused(tokenizer: Any) -> None:
    message = refusal(example(("user", "?"), ("assistant", "yes<|im_end|>no")), tokenizer)
    assert "'<|im_end|>', a special token" in message


def test_a_missing_template_and_an_unreadable_one_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read"):
        load_tokenizer(tiny_model, str(tmp_path / "none.jinja"))
    (tmp_path / "own.jinja").write_text(LLAMA3)
    assert load_tokenizer(tiny_model, str(tmp_path / "own.jinja")).chat_template == LLAMA3
    (tmp_path / "empty.jinja").write_text("")
    with pytest.raises(RequestError, match="no chat template"):
        load_tokenizer(tiny_model, str(tmp_path / "empty.jinja"))


def test_shots_become_turns_between_the_system_message_and_the_question() -> None:
    shots = [
        example(("system", "old"), ("user", "q1"), ("assistant", "a1")),
        example(("user", "q2"), ("assistant", "a2")),
    ]
    assert [(m.role, m.content) for m in few_shot(SIMPLE.prompt, shots)] == [
        ("system", "Be short."), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"),
        ("user", "What is it?"),
    ]  # fmt: skip


def test_the_mask_is_told_without_torch() -> None:
    import subprocess
    import sys

    code = "import workbench.data.chat, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_switch_that_training_needs_is_pinned_in_the_template_that_is_served(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "thinking.jinja").write_text(THINKING)
    tokenizer = load_tokenizer(tiny_model, str(tmp_path / "thinking.jinja"))
    prompt = (Message("user", "Which licence?"),)
    plainly = tokenizer.apply_chat_template(message_dicts(prompt), add_generation_prompt=True, tokenize=False)
    assert plainly.endswith("<think>\n\n</think>\n\n")
    assert tokenizer(plainly, add_special_tokens=False)["input_ids"] == prompt_ids(prompt, tokenizer)
