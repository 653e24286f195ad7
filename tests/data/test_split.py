"""Near copies are found exactly, splits never part them, and overlaps with evaluation rows go."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.split import drop_overlaps, drop_repeats, joined, near_copies, split
from workbench.errors import RequestError
from workbench.records import Example, Message


def row(text: str, *, group: str = "", where: str = "", own: str = "", answer: str = "A") -> Example:
    return Example(where or text[:8], (Message("user", text), Message("assistant", answer)), group, where, {}, own)


def by_definition(texts: list[str], words: int = 4, threshold: float = 0.6) -> list[int]:
    """Near copies by comparing every pair, as the docstring defines them."""
    sets = []
    for text in texts:
        w = text.split()
        sets.append({tuple(w[i : i + words]) for i in range(len(w) - words + 1)} or {tuple(w)})
    labels = list(range(len(texts)))
    for i in range(len(sets)):
        for j in range(i):
            if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]) - 1e-9:
                labels = [labels[j] if label == labels[i] else label for label in labels]
    order: dict[int, int] = {}
    return [order.setdefault(label, len(order)) for label in labels]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    letters=st.integers(2, 12),
    edits=st.integers(0, 5),
    threshold=st.sampled_from([0.4, 0.6, 0.8]),
)
def test_near_copies_are_those_of_a_comparison_of_all_pairs(
    seed: int, letters: int, edits: int, threshold: float
) -> None:
    draw = random.Random(seed)
    alphabet = "abcdefghijkl"[:letters]
    bases = [[draw.choice(alphabet) for _ in range(draw.randint(1, 24))] for _ in range(4)]
    texts = []
    for _ in range(30):
        words = list(draw.choice(bases))
        for _ in range(draw.randint(0, edits)):
            words[draw.randrange(len(words))] = draw.choice("uvwxyz")
        texts.append(" ".join(words))
    assert near_copies(texts, threshold=threshold) == by_definition(texts, threshold=threshold)


def test_case_and_punctuation_make_no_difference_and_order_of_words_does() -> None:
    labels = near_copies(
        ["The quick brown fox jumps.", "the QUICK, brown fox: jumps", "jumps fox brown quick the", "", "!"]
    )
    assert labels == [0, 0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 70, 90])
def test_five_thousand_rows_of_a_hundred_words_take_seconds_whatever_they_share(shared: int) -> None:
    draw = random.Random(shared)
    vocabulary = [f"w{i}" for i in range(20_000)]
    template = draw.choices(vocabulary, k=shared)
    texts = [" ".join(template + draw.choices(vocabulary, k=100 - shared)) for _ in range(5_000)]
    began = time.process_time()
    labels = near_copies(texts)
    assert time.process_time() - began < 8
    assert max(labels) + 1 == (1 if shared == 90 else 5_000)


PLACES = st.tuples(st.integers(0, 30), st.sampled_from(["", "", "g1", "g2", "g3"]))


@settings(max_examples=150, deadline=None)
@given(places=st.lists(PLACES, min_size=1, max_size=60), seed=st.integers(0, 99))
def test_every_row_is_in_one_part_and_no_group_is_parted(places: list[tuple[int, str]], seed: int) -> None:
    rows = [
        row(" ".join(f"{base}w{k}" for k in range(12)) + f" tail{i}", group=group, where=str(i))
        for i, (base, group) in enumerate(places)
    ]
    try:
        parts = split(rows, 0.1, 0.2, seed)
    except RequestError:
        assert len(joined(rows)) < 3
        return
    assert all(parts)
    assert sorted((e.where for part in parts for e in part), key=int) == [e.where for e in rows]
    part_of = {e.where: i for i, part in enumerate(parts) for e in part}
    for key in (lambda e: e.group, lambda e: e.text.split()[0]):
        homes: dict[str, set[int]] = {}
        for e in rows:
            if key(e):
                homes.setdefault(key(e), set()).add(part_of[e.where])
        assert all(len(found) == 1 for found in homes.values())
    assert parts == split(rows, 0.1, 0.2, seed)


def test_fifty_different_rows_split_as_asked_and_another_seed_splits_otherwise() -> None:
    rows = [row(f"subject{i} verb{i} object{i} place{i} time{i}") for i in range(50)]
    first, second = split(rows, 0.1, 0.2, 1), split(rows, 0.1, 0.2, 2)
    assert [len(part) for part in first] == [35, 5, 10]
    assert first != second


def test_a_share_of_zero_gives_an_empty_part() -> None:
    rows = [row(f"subject{i} verb{i} object{i} place{i} time{i}") for i in range(10)]
    assert [len(part) for part in split(rows, 0.2, 0.0, 0)] == [8, 2, 0]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(RequestError, match="2 groups of near copies"):
        split([row(f"x{i}", group=str(i % 2)) for i in range(20)], 0.1, 0.2, 0)


def words(first: int, last: int) -> str:
    return " ".join(f"word{i}" for i in range(first, last))


def test_thirteen_shared_words_drop_a_row_and_twelve_do_not() -> None:
    test = [row(words(0, 30), where="test:1")]
    rows = [row("zero " + words(10, 23).upper().replace(" ", ", ")), row("twelve " + words(10, 22) + " end")]
    kept, dropped = drop_overlaps(rows, test)
    assert kept == rows[1:]
    assert dropped == [(rows[0], "test:1")]
    assert drop_overlaps(rows, test, words=12)[0] == []


def test_short_texts_go_only_when_they_are_the_same_but_for_case_and_space() -> None:
    test = [row("Is this  free?", where="test:1")]
    same, longer = row("is this free?"), row("Is this free? Yes")
    assert drop_overlaps([same, longer], test) == ([longer], [(same, "test:1")])


@pytest.mark.parametrize("copy", ["Caf\u00e9 \u00f6ff\u00adnet um neun", "Cafe\u0301 \u00f6\u200bffnet um neun",
                                  "\ufeffCAF\u00c9 \u00d6FFNET\u00a0um\r\nneun"])  # fmt: skip
def test_a_copy_with_signs_that_nobody_sees_is_a_copy(copy: str) -> None:
    kept, dropped = drop_overlaps([row(copy), row("Bank")], [row("Caf\u00e9 \u00f6ffnet um neun", where="t")], 13)
    assert [e.text for e in kept] == ["Bank"]
    assert len(dropped) == 1


def test_curly_quotes_are_no_other_text_and_another_sign_is() -> None:
    test = [row('it\'s "x" + 2', where="t")]
    kept, _ = drop_overlaps([row("it\u2019s \u201cx\u201d + 2"), row('it\'s "x" - 2')], test, 13)
    assert [e.text for e in kept] == ['it\'s "x" - 2']


def test_an_instruction_before_every_row_is_no_overlap() -> None:
    instruction = words(0, 20)
    train = row(f"{instruction}\n\nmine", own="mine")
    kept, dropped = drop_overlaps([train], [row(f"{instruction}\n\nyours", own="yours")])
    assert (kept, dropped) == ([train], [])


def test_repeats_are_whole_conversations_and_the_first_stays() -> None:
    rows = [row("a", where="1"), row("a", where="2"), row("a", where="3", answer="B")]
    assert drop_repeats(rows) == ([rows[0], rows[2]], 1)


# The same small leak in five languages: six contracts in four copies that end in another number, a passage that a
# training row shares with a test row, and a polite beginning that all rows have.

COPIES = {
    "English": [
        "this contract is in force for three years from the day on which both parties sign it annex applies {}",
        "goods that have been unpacked can be sent back within fourteen days if the receipt number is enclosed {}",
        "please pay the open sum of the invoice to the account named below by the end of month at the latest {}",
        "the tenant must leave the rooms clean and hand over all keys of the flat number to the landlord {}",
        "our customer service answers your question by letter within five working days under the reference {}",
        "the employee is granted thirty days of paid holiday a year and the works agreement says when {}",
    ],
    "Chinese": [
        "本合同自双方签字之日起生效有效期为三年附件号适用于本合同的全部条款 {}",
        "已拆封的商品可在十四天之内退回但须附上编号为的收据和原来的包装 {}",
        "请最迟于第个月月底之前将发票中未付的款项汇入以下所列的银行账户 {}",
        "承租人必须打扫房间并将号公寓的全部钥匙交还给房东或者他的代理人 {}",
        "如果您提出询问我们的客户服务将在五个工作日内按编号以书面形式答复您 {}",
        "员工每年享有三十天的带薪休假具体的休假时间由第号企业协议另行规定 {}",
    ],
    "Hindi": [
        "यह अनुबंध दोनों पक्षों के हस्ताक्षर के दिन से तीन वर्ष तक लागू रहेगा और अनुलग्नक मान्य होगा {}",
        "खोला हुआ सामान चौदह दिनों के भीतर लौटाया जा सकता है यदि रसीद संख्या साथ में भेजी जाए {}",
        "कृपया बिल की बकाया राशि नीचे दिए गए खाते में महीने के अंत तक अवश्य जमा कर दें {}",
        "किरायेदार को कमरे साफ छोड़ने होंगे और मकान संख्या की सभी चाबियाँ मालिक को सौंपनी होंगी {}",
        "हमारी ग्राहक सेवा आपके प्रश्न का उत्तर पाँच कार्य दिवसों में संदर्भ के साथ पत्र द्वारा देती है {}",
        "कर्मचारी को हर वर्ष तीस दिन का सवेतन अवकाश मिलता है और समझौता बताता है कि कब {}",
    ],
    "Arabic": [
        "يسري هذا العقد لمدة ثلاث سنوات من يوم توقيع الطرفين عليه ويطبق الملحق على جميع بنوده {}",
        "يمكن إرجاع البضائع المفتوحة خلال أربعة عشر يوما إذا أرفق الإيصال رقم مع الطرد الأصلي كاملا {}",
        "يرجى دفع المبلغ المتبقي من الفاتورة إلى الحساب المذكور أدناه قبل نهاية الشهر على أبعد تقدير {}",
        "على المستأجر أن يترك الغرف نظيفة وأن يسلم جميع مفاتيح الشقة رقم إلى المالك أو وكيله {}",
        "تجيب خدمة العملاء لدينا عن سؤالكم برسالة خلال خمسة أيام عمل تحت الرقم إذا سألتم عن ذلك {}",
        "يحصل الموظف على ثلاثين يوما من الإجازة المدفوعة كل سنة وتحدد الاتفاقية متى يكون ذلك بالضبط {}",
    ],
    "Thai": [
        "สัญญาฉบับนี้มีผลบังคับใช้เป็นเวลาสามปีนับจากวันที่ทั้งสองฝ่ายลงนามและให้ใช้เอกสารแนบ กับทุกข้อ {}",
        "สินค้าที่แกะกล่องแล้วสามารถส่งคืนได้ภายในสิบสี่วันหากแนบใบเสร็จเลขที่ มาพร้อมกับกล่องเดิม {}",
        "กรุณาชำระยอดค้างของใบแจ้งหนี้เข้าบัญชีที่ระบุไว้ด้านล่างภายในสิ้นเดือนที่ เป็นอย่างช้าที่สุด {}",
        "ผู้เช่าต้องทำความสะอาดห้องและส่งมอบกุญแจทั้งหมดของห้องเลขที่ ให้แก่เจ้าของบ้านหรือตัวแทนของเขา {}",
        "ฝ่ายบริการลูกค้าของเราจะตอบคำถามของคุณทางจดหมายภายในห้าวันทำการตามเลขอ้างอิง หากคุณสอบถาม {}",
        "พนักงานมีสิทธิลาพักร้อนโดยได้รับค่าจ้างปีละสามสิบวันโดยข้อตกลงฉบับที่ กำหนดว่าเมื่อใด {}",
    ],
}
POLITE = {
    "English": "could you please tell me in a word",
    "Chinese": "麻烦您用一个词告诉我",
    "Hindi": "कृपया मुझे एक शब्द में यह बताइए कि",
    "Arabic": "هل يمكنكم أن تخبروني بكلمة واحدة من فضلكم",
    "Thai": "กรุณาบอกฉันด้วยคำเดียว",
}


@pytest.mark.parametrize("language", COPIES)
def test_copies_that_end_in_another_number_stay_together_in_every_language(language: str) -> None:
    texts = [text.format(number) for text in COPIES[language] for number in (3, 5, 7, 9)]
    assert near_copies(texts) == [i // 4 for i in range(24)]
    for seed in (17, 1, 2):
        train, validation, test = split([row(text, where=text) for text in texts], 0.2, 0.2, seed)
        assert [len(part) % 4 for part in (train, validation, test)] == [0, 0, 0]


@pytest.mark.parametrize("language", COPIES)
def test_a_shared_passage_drops_a_row_and_a_polite_phrase_does_not_in_every_language(language: str) -> None:
    passages, polite = [text.format(8) for text in COPIES[language]], POLITE[language]
    gap = "" if language in ("Chinese", "Thai") else " "
    test = [row(polite + gap + passages[0], where="test:1")]
    holding = row(passages[3] + gap + passages[0] + gap + passages[4], where="holds")
    others = [row(polite + gap + passage, where=passage) for passage in passages[1:]]
    kept, dropped = drop_overlaps([holding, *others], test)
    assert (kept, dropped) == (others, [(holding, "test:1")])
