"""Words are cut by Unicode's rules, so that a count of words means the same in every script."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest

from workbench.words import at_a_word, is_sign, runs_of, word_count, words_of

NOTICES = Path(__file__).parents[2] / "data" / "licence_notices" / "test.jsonl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't cut foo_bar, 3 times!", ["don", "t", "cut", "foo_bar", "3", "times"]),
        ("कृपया मुझे बताइए", ["कृपया", "मुझे", "बताइए"]),  # vowel signs are marks
        ("مُحَمَّد هنا", ["مُحَمَّد", "هنا"]),
        ("cafe\u0301 Straße", ["café", "strasse"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("附件12号", ["附", "件", "12", "号"]),
        ("スーパーで", ["ス", "ー", "パ", "ー", "で"]),
        ("น้ำ๑๒ x", ["น้ำ", "๑๒", "x"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("…🙂", []),
    ],
)
def test_marks_belong_to_letters_and_scripts_without_spaces_are_cut_into_signs(text: str, expected: list[str]) -> None:
    assert words_of(text) == [unicodedata.normalize("NFC", word) for word in expected]


def test_texts_of_spaced_scripts_without_marks_have_the_words_of_a_plain_search() -> None:
    alike = [c for c in map(chr, range(0x20, 0x530)) if len(c.casefold()) == 1]
    letters = [c for c in alike if unicodedata.category(c)[0] not in "MC"]
    draw = random.Random(5)
    texts = ["".join(draw.choices(letters, k=40)) for _ in range(500)]
    texts += [json.loads(line)["text"] for line in NOTICES.open(encoding="utf-8")]
    texts = [text for text in texts if not any(unicodedata.combining(c) for c in text)]
    for text in texts:
        assert words_of(text) == re.findall(r"\w+", unicodedata.normalize("NFC", text.casefold()))
        assert list(runs_of(words_of(text), 5)) == list(zip(*(words_of(text)[i:] for i in range(5))))


@pytest.mark.parametrize(("sign", "signs"), [("字", 6), ("か", 10), ("ก", 10), ("ក", 10), ("မ", 10), ("ກ", 10)])
def test_a_run_of_signs_is_as_long_as_so_many_words(sign: str, signs: int) -> None:
    assert is_sign(sign)
    assert list(runs_of([sign] * (signs - 1), 4)) == []
    assert list(runs_of([sign] * (signs + 1), 4)) == [(sign,) * signs] * 2
    assert word_count(sign * signs) == 4


def test_words_and_signs_count_together() -> None:
    assert list(runs_of(words_of("iPhone 15 手机壳 sold"), 4)) == [
        ("iphone", "15", "手", "机", "壳"),
        ("15", "手", "机", "壳", "sold"),
    ]


@pytest.mark.parametrize(
    ("beginning", "cut"),
    [("one two thr", "one two "), ("请分类以下", "请分类以下"), ("please 分x", "please 分"), ("ab", "")],
)
def test_a_shared_beginning_ends_with_a_word(beginning: str, cut: str) -> None:
    assert at_a_word(beginning) == cut
