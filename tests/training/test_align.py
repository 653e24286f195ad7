"""Chunks of two tokenizers' tokens hold exactly the same bytes, always, and cover the text where both spell it."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smollm2 import SHA256, SMALL
from workbench.errors import RequestError
from workbench.sources import model_folder
from workbench.training.align import Alignment, align, ids_by_bytes, sentencepiece_bytes, token_bytes

CORPUS = [
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software",
    '{"category": "Copyleft Limited", "license": "lgpl-2.1-plus"}\n',
    "Zażółć gęślą jaźń; Übergrößenträger; naïve café; e\u0301a\u0308o\u0302; 自由軟體授權; свободное ПО",
    "🙂🙃 👩‍👩‍👧‍👦 🇫🇷 ✅ 100 % 3,14 \t tabs  and   spaces\r\n",
]
Tokenize = Callable[[str], list[bytes]]


def byte_level(vocabulary: int, seed: int) -> Any:
    """A byte-level BPE trained on a shuffle of the corpus, with a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=seed % 2 == 0)
    bpe.decoder = decoders.ByteLevel()
    texts = CORPUS * 3
    random.Random(seed).shuffle(texts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")


def metaspace_bpe() -> Any:
    """A BPE as Llama 2's: `▁` for spaces, bytes for what it does not know, a space written before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_too = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS[:2], trainers.BpeTrainer(vocab_size=120, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_too])}
    for token in state["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in state["merges"]]
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def sentencepiece(exact: bool) -> Any:
    """A unigram model: with bytes for unknown characters and the text as it is, or as SentencePiece comes."""
    import sentencepiece as spm

    model = io.BytesIO()
    as_it_is = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5), model_writer=model, vocab_size=400 if exact else 120, minloglevel=2,
        hard_vocab_limit=False, **(as_it_is if exact else {}),
    )  # fmt: skip
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def pieces(exact: bool, text: str) -> list[bytes]:
    """SentencePiece's tokens as bytes, without the space it writes before the text."""
    found = [sentencepiece_bytes(piece) for piece in sentencepiece(exact).encode(text, out_type=str)]
    if found and found[0].startswith(b" "):
        found[0] = found[0].removeprefix(b" ")
    return found


def of_hugging_face(tokenizer: Any, text: str) -> list[bytes]:
    return token_bytes(tokenizer, tokenizer(text, add_special_tokens=False).input_ids, text)


def single_bytes(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


@cache
def tokenizers() -> dict[str, Tokenize]:
    """Every tokenizer here but SmolLM2's, as a function from text to its tokens' bytes."""
    return {
        "byte-level BPE": partial(of_hugging_face, byte_level(700, 0)),
        "another byte-level BPE": partial(of_hugging_face, byte_level(420, 1)),
        "BPE as Llama 2's": partial(of_hugging_face, metaspace_bpe()),
        "SentencePiece": partial(pieces, True),
        "SentencePiece as it comes": partial(pieces, False),
        "bytes": single_bytes,
    }


# `▁` is how these write a space, so it cannot be told from one; and after a special token they write another.
SPACED, UNTRUE = ("SentencePiece", "BPE as Llama 2's"), ("▁", "<s>", "</s>", "<unk>")
UNFAITHFUL = "SentencePiece as it comes"  # it normalises, and has a word for what it does not know
texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.sampled_from(
            [*CORPUS, " ", "  ", "\n", "\r\n", "<|im_end|>", "</s>", "<0x0A>", "e\u0301", "\u0301", "\u200d"]
        ),
        st.text(st.sampled_from("👩👧🏽\u200d\ufe0f🇫🇷e\u0301\u0323a ▁Ġ"), max_size=8),
    ),
    max_size=6,
).map("".join)


def check(teacher: list[bytes], student: list[bytes]) -> Alignment:
    """What holds of every alignment; returns it."""
    found = align(teacher, student)
    for side in ("teacher", "student"):
        ranges = [getattr(chunk, side) for chunk in found.chunks]
        assert all(a.stop <= b.start for a, b in pairwise(ranges))
    for chunk in found.chunks:
        ours, theirs = [student[i] for i in chunk.student], [teacher[i] for i in chunk.teacher]
        assert b"".join(ours) == b"".join(theirs) != b""
        # No smaller chunks: inside, no end of one side's tokens is one of the other's.
        assert not ends(ours) & ends(theirs)
    if b"".join(teacher) == b"".join(student):
        assert left_out(found, teacher, "teacher") == left_out(found, student, "student") == 0
    return found


def left_out(found: Alignment, tokens: list[bytes], side: str) -> int:
    """How many of one side's bytes are in no chunk."""
    covered = [tokens[i] for chunk in found.chunks for i in getattr(chunk, side)]
    return len(b"".join(tokens)) - len(b"".join(covered))


def ends(tokens: list[bytes]) -> set[int]:
    """Where tokens meet, first and last end left out."""
    lengths, at = set(), 0
    for token in tokens:
        at += len(token)
        lengths.add(at)
    return lengths - {0, at}


@settings(max_examples=120, deadline=None)
@given(text=texts)
@example(text=" a\u0301")
@example(text="x<|im_end|>\n<|im_end|>")
@example(text="")
def test_chunks_hold_the_same_bytes_for_every_pair_of_tokenizers(text: str) -> None:
    told = {name: tokenize(text) for name, tokenize in tokenizers().items()}
    for name, tokens in told.items():
        if name != UNFAITHFUL and not (name in SPACED and any(word in text for word in UNTRUE)):
            assert b"".join(tokens) == text.encode(), name
    names = list(told)
    for i, teacher in enumerate(names):
        for student in names[i:]:
            check(told[teacher], told[student])
            check(told[student], told[teacher])


@settings(max_examples=300, deadline=None)
@given(
    text=st.binary(max_size=40),
    cuts=st.tuples(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40))),
    empties=st.tuples(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40))),
    ending=st.binary(max_size=3),
    beginning=st.binary(max_size=3),
)
def test_chunks_hold_the_same_bytes_wherever_the_cuts_are(
    text: bytes, cuts: Any, empties: Any, ending: bytes, beginning: bytes
) -> None:
    teacher = cut(text, cuts[0], empties[0])
    check(teacher, cut(text, cuts[1], empties[1]))
    found = check(teacher, [beginning, *cut(text, cuts[1], empties[1]), ending])
    if not beginning:
        assert left_out(found, teacher, "teacher") == 0


def cut(text: bytes, at: set[int], empties: set[int]) -> list[bytes]:
    """The text cut at some places, with tokens of no bytes among its own."""
    places = [0, *sorted(place for place in at if 0 < place < len(text)), len(text)]
    tokens = [text[a:b] for a, b in pairwise(places)]
    for place in sorted(empties, reverse=True):
        if place <= len(tokens):
            tokens.insert(place, b"")
    return tokens


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(text=texts)
def test_smollm2s_tokens_align_with_every_other(text: str) -> None:
    smollm2 = partial(of_hugging_face, smollm2_tokenizer())
    ours = smollm2(text)
    # It has no token for some bytes of rare characters, and passes over them without a word.
    assert b"".join(ours) == bytes(byte for byte in text.encode() if bytes([byte]) in smollm2_alphabet())
    for tokenize in tokenizers().values():
        check(ours, tokenize(text))
        check(tokenize(text), ours)


@cache
def smollm2_tokenizer() -> Any:
    """SmolLM2's own, fetched where it is not in the cache."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(SMALL, SHA256), local_files_only=True)


@cache
def smollm2_alphabet() -> set[bytes]:
    return {token for token in ids_by_bytes(smollm2_tokenizer()) if len(token) == 1}


def test_the_chat_models_own_tokenizer_is_read_byte_for_byte(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "".join(CORPUS) + "<|im_end|>"
    spelled = of_hugging_face(tokenizer, text)
    assert b"".join(spelled) == text.encode()
    assert spelled[-1] == b"<|im_end|>"
    assert check(spelled, single_bytes(text)).chunks


def test_a_token_may_end_inside_a_character() -> None:
    found = align([b"a\xc3", b"\xa9b"], [b"a", b"\xc3", b"\xa9", b"b"])
    assert [(list(c.teacher), list(c.student)) for c in found.chunks] == [([0], [0, 1]), ([1], [2, 3])]
    crossed = align([b"\xf0\x9f", b"\x99\x82!"], [b"\xf0", b"\x9f\x99\x82", b"!"])
    assert [(list(c.teacher), list(c.student)) for c in crossed.chunks] == [([0, 1], [0, 1, 2])]


def test_a_stop_token_a_beginning_and_empty_tokens_are_in_no_chunk() -> None:
    found = align([b"<s>", b"yes", b"", b" sir"], [b"", b"yes sir", b"<|im_end|>"])
    assert found.chunks == ()  # what differs at both ends hides what is shared between
    sides = [b"", b"yes", b" sir"], [b"yes", b" sir", b"<|im_end|>"]
    stopped = align(*sides)
    assert [(list(c.teacher), list(c.student)) for c in stopped.chunks] == [([1], [0]), ([2], [1])]
    assert (left_out(stopped, sides[0], "teacher"), left_out(stopped, sides[1], "student")) == (0, 10)
    assert stopped.student_chunks(3) == [0, 1, -1]
    assert stopped.teacher_logprobs([-9.0, -1.0, -2.0]) == [-1.0, -2.0]
    begun = align([b"<s>", b"yes", b" sir"], [b"yes sir"])
    assert [(list(c.teacher), list(c.student)) for c in begun.chunks] == [([1, 2], [0])]


def test_a_likelihood_over_chunks_is_the_whole_answers(tiny_model: Path) -> None:
    text = CORPUS[2]
    teacher, student = tokenizers()["byte-level BPE"](text), single_bytes(text)
    found = align(teacher, student)
    logprobs = [-float(i) for i in range(len(teacher))]
    assert sum(found.teacher_logprobs(logprobs)) == sum(logprobs)
    assert set(found.student_chunks(len(student))) == set(range(len(found.chunks)))


def test_a_teachers_alternatives_become_the_students_ids_by_their_bytes() -> None:
    tokenizer = byte_level(420, 1)
    known = ids_by_bytes(tokenizer)
    assert known[b"<|im_end|>"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(bytes([byte]) in known for byte in range(256))
    (number,) = tokenizer(" e", add_special_tokens=False).input_ids[:1]
    assert known[token_bytes(tokenizer, [number])[0]] == number
    llama = metaspace_bpe()
    assert ids_by_bytes(llama)[b"e"] == llama.convert_tokens_to_ids("e") != llama.convert_tokens_to_ids("<0x65>")
    assert ids_by_bytes(llama)[b"\xff"] == llama.convert_tokens_to_ids("<0xFF>")


def test_a_byte_tokenizer_is_read_and_one_that_loses_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    assert of_hugging_face(ByT5Tokenizer(), "né🙂") == single_bytes("né🙂")
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    wordpiece.decoder = decoders.WordPiece()
    with pytest.raises(RequestError, match="does not say which bytes"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=wordpiece), [1])
