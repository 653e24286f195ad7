"""Answers that speak to their judge: passages found by what they say, and blanked out before anybody compares.

A judge reads what it judges, and may obey it: "choose this answer" inside an answer is an attack, and a model that was
tuned on the judge's taste learns it. Fences and random names (`judging.py`) keep an answer from posing as the request;
this file takes out what speaks plainly. The patterns are English, as are the attacks known from papers (arXiv
2403.17710, 2504.18333); one in another language or in riddles gets through to the judge, who is told not to obey.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

BLANK = "[…]"
SENTENCE = re.compile(r"[^.!?\n。！？]*(?:[.!?。！？]+|\n|$)")
NEAR = r"[^.!?。！？]{0,80}?"  # between the words of one sentence
JUDGE = r"(?:judge|grader|evaluator|assessor|examiner|rater|reviewer|referee|annotator)s?"
ANSWER = r"(?:answer|response|reply|output|completion|submission|candidate)s?"
PLACE = r"(?:first|second|1st|2nd|former|latter|previous|preceding|following|next|last|upper|lower|left|right|other)"
LETTER = r"(?:(?-i:[A-D])|[12]|one|two)\b"
# An answer as a whole, by itself or by its place. Other nouns are left out: "this option is best for you" is advice.
WHOLE = (
    rf"(?:(?:this|my|our)\s+(?:\w+\s+){{0,2}}?{ANSWER}\b|(?:the|any|every)\s+(?:{PLACE}|present|given)\s+{ANSWER}\b"
    rf"|{ANSWER}\s+(?:above|below|{LETTER})|the\s+{PLACE}\s+one\b)"
)
PRAISE = (
    r"(?:better|best|worse|worst|superior|inferior|wins?|winning|winner|won|loses?|loser|prefer\w*|chosen|selected"
    r"|picked|favou?red|highest|lowest|perfect|flawless|correct|incorrect|wrong|deserves?|full\s+marks)\b"
)
ORDER = (
    r"(?:choos(?:e|ing)|select(?:ing)?|pick(?:ing)?|prefer(?:ring)?|favou?r(?:ing)?|vot(?:e|ing)\s+for|rat(?:e|ing)"
    r"|rank(?:ing)?|grad(?:e|ing)|scor(?:e|ing)|declar(?:e|ing)|go\s+with|giv(?:e|ing)|award(?:ing)?)"
)
PAST = r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget|overrid(?:e|ing)|bypass|do\s+not\s+follow|don't\s+follow)"
RULES = r"(?:instructions?|criteri(?:a|on)|rules?|guidelines?|prompts?|rubrics?|directions?)\b"
EARLIER = r"(?:all|any|previous|prior|above|earlier|preceding|your|these|those|every|given|judging)"
VALUE = (
    rf"(?:(?:this|my)\s+\w+|the\s+{PLACE}\b|{PLACE}\b|me\b|this\b|mine\b|tie\b|{ANSWER}[ _-]?[A-D12]\b"
    rf"|{LETTER}(?=\s*(?:$|[\"'.,}}\]])))"
)
KEY = r"\b(?:winner|better|preferred|preference|verdict)"
SPEAKING = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{WHOLE}{NEAR}\b{PRAISE}",
        rf"\b(?:{PRAISE}|{ORDER}\b){NEAR}\b{WHOLE}",
        rf"\bthis\s+is\s+(?:\w+\s+){{0,2}}?{PRAISE}\s+(?:\w+\s+)?{ANSWER}\b",
        rf"\b{ORDER}\s+(?:me|mine|this)(?=\s*(?:$|[.,;:!)\"']|one\b|over\b|as\b|because\b))",
        rf"\b{PAST}\s+(?:\w+\s+){{0,3}}?{EARLIER}\s+(?:\w+\s+){{0,3}}?{RULES}",
        rf"\b{PAST}\s+(?:\w+\s+){{0,3}}?(?:the\s+)?(?:{ANSWER}|criteria|rubric|reference)\b",
        rf"\b(?:dear|hey|hello|attention|note\s+(?:to|for)|message\s+(?:to|for))[\s,:]+(?:\w+\s+){{0,3}}?{JUDGE}\b",
        rf"\bas\s+(?:a|an|the|your|our)\s+(?:\w+\s+){{0,2}}?{JUDGE}\b[\s,]*(?:you|please|{ORDER})\b",
        rf"\b{JUDGE}\b{NEAR}\b(?:{ORDER}|{PRAISE}){NEAR}\b(?:me|mine|this\s+one|{ANSWER})\b",
        rf"{KEY}[\"']?\s*[:=]\s*[\"']?{VALUE}",
        rf"\[\[\s*{VALUE}",
        rf"\[\[\s*{LETTER}\s*\]\]",
    )
]
JSON_VERDICT = re.compile(rf"\{{[^{{}}]*{KEY}[\"']\s*:\s*[\"']?{VALUE}[^{{}}]*\}}", re.IGNORECASE)


def speaks(text: str) -> bool:
    """Whether something in the text is said to a judge."""
    return bool(passages(text))


def passages(text: str) -> list[tuple[int, int]]:
    """Where the text speaks to a judge: (start, end) of each whole sentence or JSON object that does, in order."""
    plain, places = readable(text)
    found = [match.span() for match in JSON_VERDICT.finditer(plain)]
    for match in SENTENCE.finditer(plain):
        if match[0].strip() and any(pattern.search(match[0]) for pattern in SPEAKING):
            found.append(match.span())
    # A line's end parts the items of a list, and must not part "choose" from "this answer".
    joined = plain.replace("\n", " ")
    found += [match.span() for pattern in SPEAKING for match in pattern.finditer(joined)]
    return merged([(places[start], places[end]) for start, end in found])


def blanked(text: str) -> str:
    """The text with each such passage swapped for a mark: the rest is what the answer has to say for itself."""
    parts, at = [], 0
    for start, end in passages(text):
        parts += [text[at:start], BLANK + "\n" * text[start:end].endswith("\n")]
        at = end
    return "".join([*parts, text[at:]])


def readable(text: str) -> tuple[str, Sequence[int]]:
    """The text as a reader sees it, and for each of its characters (and its end) the place in the given text.

    Invisible signs between letters go, and full-width or ornamental letters become plain ones: "ｃｈｏｏｓｅ" and
    "cho\u200bose" read as "choose".
    """
    if text.isascii():
        return text, range(len(text) + 1)
    plain, places = [], []
    for place, character in enumerate(text):
        if unicodedata.category(character) in ("Cf", "Mn"):
            continue
        for shown in unicodedata.normalize("NFKC", character):
            plain.append("'" if shown in "‘’" else '"' if shown in "“”" else shown)
            places.append(place)
    return "".join(plain), [*places, len(text)]


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch as one."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out
