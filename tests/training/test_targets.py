"""A teacher's stored tokens become targets on the bytes of the trained answer, or the row is counted as without."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.chat import load_tokenizer, render
from workbench.records import Example, Message, TokenRow
from workbench.teacher.wire import TokenLogprobs, pack, parquet_writer, read_parquet
from workbench.training.align import token_bytes
from workbench.training.targets import (
    ChunkTargets,
    LabelTargets,
    TokenTargets,
    alternatives,
    carried,
    label_targets,
    targets_of,
    told_ways,
)

ANSWER = '{"category": "Copyleft"}'


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model, None)


def row_of(tokenizer: Any, answer: str, name: str = "a") -> TokenRow:
    example = Example(name, (Message("user", "free of charge"), Message("assistant", answer)))
    return render(example, tokenizer, train_on="last_answer", max_length=512)


def said_as(pieces: list[bytes], top: tuple[tuple[bytes, float], ...] = ()) -> list[TokenLogprobs]:
    """Tokens of which each is 0.8 likely, with some alternatives."""
    return [TokenLogprobs(piece, math.log(0.8), ((piece, math.log(0.8)), *top)) for piece in pieces]


def own_pieces(tokenizer: Any, text: str) -> list[bytes]:
    return token_bytes(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("abc é🙂", min_size=1, max_size=6), st.text("xyz ü🙂", max_size=8), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([(",", ":"), (", ", ": "), (",\n", " : ")]),
)
def test_an_answer_written_with_other_white_space_is_carried_by_its_tokens_whole(
    fields: dict[str, str], size: int, separators: tuple[str, str]
) -> None:
    reply = json.dumps(fields, ensure_ascii=False, separators=separators).encode()
    answer = json.dumps(fields, ensure_ascii=False).encode()
    tokens = [reply[i : i + size] for i in range(0, len(reply), size)]
    pieces = carried(tokens, answer)
    assert pieces is not None
    assert len(pieces) == len(tokens)
    assert b"".join(pieces) == answer


def test_an_answer_inside_a_larger_object_or_a_fence_is_found_and_another_text_is_not() -> None:
    reply = b'```json\n{"rationale": "because it says yes", "label": "yes"}\n```'
    tokens = [reply[i : i + 3] for i in range(0, len(reply), 3)]
    pieces = carried(tokens, b"yes")
    assert pieces is not None
    assert b"".join(pieces) == b"yes"
    assert b"".join(tokens[: next(i for i, p in enumerate(pieces) if p)]).endswith(
        (b'"label": "', b'"label": ', b'l": "y')
    )
    assert carried([b"no", b"pe"], b"entirely different") is None


def test_the_students_own_tokens_become_targets_token_by_token(tokenizer: Any) -> None:
    row = row_of(tokenizer, ANSWER)
    said = said_as([*own_pieces(tokenizer, ANSWER), b""], ((b"x", math.log(0.1)),))
    targets, ways = targets_of([row], {"a": said}, tokenizer)
    assert ways == {"tokens": 1}
    found = targets["a"]
    assert isinstance(found, TokenTargets)
    answer = [i for i, trained in zip(row.input_ids, row.trained, strict=True) if trained]
    assert [ids[0] for ids in found.ids] == answer, "the stop token's too"
    assert all(len(ids) == 2 for ids in found.ids[:-1])
    assert found.logprobs[0][0] == pytest.approx(math.log(0.8))


def test_another_tokenizer_is_met_in_chunks_of_the_same_bytes_that_keep_their_likelihood(tokenizer: Any) -> None:
    row = row_of(tokenizer, ANSWER)
    raw = ANSWER.encode()
    said = said_as([raw[i : i + 5] for i in range(0, len(raw), 5)], ((b"\xff\xfe unknown to the student", -2.0),))
    targets, ways = targets_of([row], {"a": said}, tokenizer)
    assert ways == {"bytes": 1}
    found = targets["a"]
    assert isinstance(found, ChunkTargets)
    assert len(found.chunk_of) == sum(row.trained)
    assert found.chunk_of[-1] == -1, "the stop token is not the teacher's"
    assert set(found.chunk_of[:-1]) == set(range(len(found.logprobs)))
    assert sum(found.logprobs) == pytest.approx(len(said) * math.log(0.8)), "all of the teacher's tokens count"


def test_rows_that_cannot_be_aligned_or_have_nothing_stored_fall_back_to_text_and_are_counted(tokenizer: Any) -> None:
    rows = [row_of(tokenizer, ANSWER, name) for name in ("a", "b", "c")]
    told = {"a": said_as(own_pieces(tokenizer, ANSWER)), "b": said_as([b"q", b"u"])}
    targets, ways = targets_of(rows, told, tokenizer)
    assert set(targets) == {"a"}
    assert ways == {"tokens": 1, "text": 1, "not stored": 1}
    assert "1 rows token by token" in told_ways(ways)
    assert "cannot be aligned" in told_ways(ways)
    _, bytes_only = targets_of(rows, told, tokenizer, alignment="bytes")
    assert bytes_only == {"bytes": 1, "text": 1, "not stored": 1}


def labels_of(tokenizer: Any, *names: str) -> dict[str, tuple[int, ...]]:
    rows = {name: row_of(tokenizer, name) for name in names}
    return {name: tuple(i for i, t in zip(r.input_ids, r.trained, strict=True) if t) for name, r in rows.items()}


def test_a_closed_set_gets_every_labels_probability_from_the_branches_of_one_answer(tokenizer: Any) -> None:
    said = [
        TokenLogprobs(b'{"label": "', 0.0, ((b'{"label": "', 0.0),)),
        TokenLogprobs(
            b"re", math.log(0.7), ((b"re", math.log(0.7)), (b"bl", math.log(0.2)), (b"blue", math.log(0.05)))
        ),
        TokenLogprobs(b'd"}', math.log(0.9), ((b'd"}', math.log(0.9)), (b"a", math.log(0.1)))),
    ]
    labels = labels_of(tokenizer, "red", "blue", "real")
    targets, ways = targets_of([row_of(tokenizer, "red")], {"a": said}, tokenizer, labels=labels)
    assert ways == {"labels": 1}
    found = targets["a"]
    assert isinstance(found, LabelTargets)
    assert found.own == 0
    assert [math.exp(p) for p in found.logprobs] == pytest.approx([0.63, 0.25, 0.07])
    assert found.answers == tuple(labels.values())


def test_a_label_that_no_alternative_tells_or_that_begins_another_leaves_the_row_to_other_ways(tokenizer: Any) -> None:
    said = said_as([b"red"], ((b"blue", math.log(0.1)),))
    pieces = carried([b"red"], b"red") or []
    for names in (("red", "blue", "green"), ("red", "redder", "blue"), ("red",)):
        labels = labels_of(tokenizer, *names)
        assert label_targets(said, pieces, labels["red"], labels) is None
    two = labels_of(tokenizer, "red", "blue")
    assert label_targets(said, pieces, two["red"], two) is not None


def test_alternatives_are_each_one_id_once_and_the_said_token_is_always_there() -> None:
    known = {b"a": 1, b"b": 2}
    one = TokenLogprobs(b"c", -5.0, ((b"a", -1.0), (b"b", -2.0), (b"", -3.0), (b"zzz", -4.0)))
    ids, logprobs = alternatives(one, 9, known)
    assert ids == (1, 2, 9)
    assert logprobs == (-1.0, -2.0, -5.0)


def test_what_was_stored_is_read_back(tmp_path: Path) -> None:
    content = [{"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}] * 3
    with parquet_writer(tmp_path / "l.parquet") as add:
        add("x", pack(content))
        add("y~2", pack(content[:1]))
    found = read_parquet(tmp_path / "l.parquet")
    assert {name: len(tokens) for name, tokens in found.items()} == {"x": 3, "y~2": 1}
    assert found["x"][0] == TokenLogprobs(b"a", -0.5, ((b"b", -1.5),))
