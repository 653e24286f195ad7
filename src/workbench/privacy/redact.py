"""Personal data and secrets with a structure: found in a text, swapped for placeholders, put back into answers.

No language model is asked, so names of people and places are not found: a row that holds them is not made anonymous.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from workbench.privacy import identifiers, secrets
from workbench.privacy.form import Find, Pattern
from workbench.privacy.identifiers import KINDS, NATIONAL, NEAR_BEFORE, NEAR_BEHIND, phones

# As written here, and as a model may give it back: in small letters, with blanks inside, escaped for Markdown.
PLACEHOLDER = re.compile(
    rf"(?P<escaped>\\)?\[ ?(?P<kind>{'|'.join(KINDS)})\\?[_ -](?P<number>\d{{1,6}}) ?(?(escaped)\\)\]", re.IGNORECASE
)
WHOLE_WORD = 6  # a value shorter than this is looked for elsewhere in the row as a whole word only

# One character for one, so that places stay: other blanks, dashes and full-width signs as ASCII ones.
BLANKS, DASHES = "\u00a0\u00ad\u202f\u2060\u3000\ufeff", "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63"
PLAIN: dict[int, str | int] = {
    **dict.fromkeys([*map(ord, BLANKS), *range(0x2000, 0x2010)], " "),
    **dict.fromkeys(map(ord, DASHES), "-"),
    **{full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)},
}
OTHER_DIGIT = re.compile(r"(?![0-9])\d")
ESCAPED = re.compile(r"\\[nrt\"/]")
UUID = re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])")
QUAD = re.compile(r"(?<![\d.+])(?!\d\d(?:\.\d\d){4}(?!\.?\d))\d{1,3}(?:\.\d{1,5}){3,}(?![\d.]*\d)")


def find(text: str) -> list[Find]:
    """Structured personal data and secrets in a text, in order, never overlapping; placeholders are none."""
    plain = plainly(text)
    codes = [match.span() for match in UUID.finditer(plain)]
    finds = [item for finder in FINDERS for item in finder(plain) if item.kind == "SECRET" or not within(item, codes)]
    rest = plain  # a phone number is what is left: it may stand right beside another number
    for start, end in [*codes, *((item.start, item.end) for item in finds), *(m.span() for m in QUAD.finditer(plain))]:
        rest = rest[:start] + "\n" * (end - start) + rest[end:]
    return merged([*finds, *phones(rest)])


def within(item: Find, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a find lies inside one of the stretches."""
    return any(start <= item.start and item.end <= end for start, end in spans)


def plainly(text: str) -> str:
    """The text as the patterns read it, every character at its place.

    A placeholder becomes line ends, which nothing is found across; an escape as in JSON becomes blanks.
    """
    text = unmarked(text).translate(PLAIN)
    text = OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    return ESCAPED.sub(lambda match: " " + (match[0][1] if match[0][1] in '"/' else " "), text)


def unmarked(text: str) -> str:
    """The text with line ends where its placeholders stand, every other character at its place."""
    return PLACEHOLDER.sub(lambda match: "\n" * len(match[0]), text)


def merged(finds: Sequence[Find]) -> list[Find]:
    """Finds that overlap as one, of the kind of the longer (of two the same length: the earlier in KINDS)."""
    out: list[Find] = []
    for item in sorted(finds, key=lambda f: (f.start, -f.end, KINDS.index(f.kind))):
        if out and item.start < out[-1].end:
            last = out[-1]
            kind = last.kind if last.end - last.start >= item.end - item.start else item.kind
            out[-1] = Find(kind, last.start, max(last.end, item.end))
        else:
            out.append(item)
    return out


def redact(texts: Sequence[str]) -> tuple[list[str], dict[str, str], dict[str, int]]:
    """The texts of one row without what `find` finds; what each placeholder stands for; how many stand there by kind.

    The same characters get the same placeholder in all the texts, also where only one text shows what they are (its
    label, say); a number found once goes however it is grouped elsewhere. A placeholder that stands in the row
    already is never given out. Swapping can uncover what a neighbour hid, so it is repeated until `leaks` is empty
    for each text: every round leaves fewer characters of the row, so it ends.
    """
    new = list(texts)
    taken = {name for text in new for name in names(text)}
    given: dict[str, str] = {}
    changed = set(range(len(new)))
    while finds_by_text := {i: finds for i in sorted(changed) if (finds := find(new[i]))}:
        values = {new[i][item.start : item.end]: item.kind for i, finds in finds_by_text.items() for item in finds}
        echoes = [(kind, echo(kind, value)) for value, kind in values.items()]
        changed = set()
        for i, text in enumerate(new):
            if spans := merged([*finds_by_text.get(i, []), *repeats(text, echoes)]):
                new[i] = swapped(text, spans, given, taken)
                changed.add(i)
    originals = {placeholder: value for value, placeholder in given.items()}
    standing = [f"[{kind}_{number}]" for text in new for kind, number in names(text)]
    counts = Counter(placeholder[1:].rpartition("_")[0] for placeholder in standing if placeholder in originals)
    return new, {name: restore(originals[name], originals) for name in originals if name in standing}, dict(counts)


def swapped(text: str, spans: Sequence[Find], given: dict[str, str], taken: set[tuple[str, int]]) -> str:
    """The text with a placeholder for each span: the one its value was `given`, else the first that is not `taken`."""
    parts, at = [], 0
    for item in spans:
        value = text[item.start : item.end]
        if value not in given:
            number = next(n for n in itertools.count(1) if (item.kind, n) not in taken)
            taken.add((item.kind, number))
            given[value] = f"[{item.kind}_{number}]"
        parts += [text[at : item.start], given[value]]
        at = item.end
    return "".join([*parts, text[at:]])


def names(text: str) -> list[tuple[str, int]]:
    """The kind and number of each placeholder in a text, however it is written."""
    return [(match["kind"].upper(), int(match["number"])) for match in PLACEHOLDER.finditer(text)]


def echo(kind: str, value: str) -> re.Pattern[str]:
    """Where else a value that was found may stand: as it is, and, if it is a number, with other signs between."""
    signs = [re.escape(c) for c in value if c.isalnum()]
    forms = re.escape(value)
    if kind not in ("SECRET", "URL", "EMAIL"):
        forms += "|" + r"[ .()/\-]{0,2}".join(signs)
    if len(signs) < WHOLE_WORD:
        forms = rf"(?<![A-Za-z0-9])(?:{forms})(?![A-Za-z0-9])"
    return re.compile(forms, re.NOFLAG if kind == "SECRET" else re.IGNORECASE)


def repeats(text: str, echoes: Sequence[tuple[str, re.Pattern[str]]]) -> Iterator[Find]:
    """Where in a text the values stand, placeholders left alone."""
    for view in {unmarked(text), plainly(text)}:
        for kind, pattern in echoes:
            yield from (Find(kind, *match.span()) for match in pattern.finditer(view) if match[0].strip())


def restore(text: str, originals: Mapping[str, str]) -> str:
    """An answer with the originals put back for the placeholders.

    A model may have changed a placeholder's case, put a blank inside its brackets, written a blank or a hyphen for
    the `_`, set zeros before the number, or escaped it for Markdown: `[email_1]`, `[ Email 1 ]`, `\\[EMAIL\\_1\\]`.
    Without its square brackets it is left as it is, and so is one that is not among the originals. Of an answer in
    JSON restore the parsed values: an original may hold quotes and line ends.
    """
    by_name = {name: original for placeholder, original in originals.items() for name in names(placeholder)}
    return PLACEHOLDER.sub(lambda match: by_name.get((match["kind"].upper(), int(match["number"])), match[0]), text)


def leaks(text: str) -> dict[str, int]:
    """What `find` still finds in a text that is about to leave, by kind; empty after `redact`."""
    return dict(Counter(item.kind for item in find(text)))


# Each way of looking for identifiers in a text, but for phone numbers, which have a file of their own.
#
# Nothing is downloaded, and nothing is read but the libraries' own tables when they are first needed.
#
# An address (URL) counts only where it holds a password, a key or a person's data: licences, sources and manuals live
# at public addresses, and a teacher that cannot read those cannot answer.

PATTERNS: tuple[Pattern, ...] = (*secrets.CREDENTIALS, *identifiers.CONTACT, *NATIONAL)


def by_pattern(text: str) -> Iterator[Find]:
    """What the tables of patterns propose and their checks and labels let stand."""
    for pattern in PATTERNS:
        for match in pattern.regex.finditer(text):
            start, end = match.span("value" if "value" in pattern.regex.groupindex else 0)
            if pattern.label is None and pattern.kind in ("ID", "SSN") and spaced_on(text, start, end):
                continue
            if (pattern.label is None or is_labelled(pattern, text, start, end)) and pattern.check(text[start:end]):
                yield Find(pattern.kind, start, end)


def spaced_on(text: str, start: int, end: int) -> bool:
    """Whether a number written in groups goes on with a further group of digits on either side."""
    return " " in text[start:end] and bool(
        re.match(r" \d", text[end : end + 2]) or re.match(r"\d $", text[max(0, start - 2) : start])
    )


def is_labelled(pattern: Pattern, text: str, start: int, end: int) -> bool:
    """Whether the pattern's label stands near; where nothing else checks the number, no other may stand between."""
    before, behind = text[max(0, start - NEAR_BEFORE) : start], text[end : end + NEAR_BEHIND]
    if pattern.check is bool:
        before, behind = re.split(r"\d{4}", before)[-1], re.split(r"\d|[.;\n]", behind)[0]
    return bool(pattern.label and (pattern.label.search(before) or pattern.label.search(behind)))


def assigned(text: str) -> Iterator[Find]:
    """Values that a label calls a password, key or token: `password = …`, `"api_key": "…"`, `the password is …`."""
    for regex in (secrets.ASSIGNED, secrets.OPTION):
        for match in regex.finditer(text):
            if secrets.is_assigned(match):
                yield Find("SECRET", *secrets.value_span(match))


def addresses(text: str) -> Iterator[Find]:
    """Addresses with a password, a key or a person's data inside."""
    for match in secrets.ADDRESS.finditer(text) if "://" in text else ():
        address = match[0].rstrip(".,;:!?)]}>")
        if secrets.is_telling(address):
            yield Find("URL", match.start(), match.start() + len(address))


def e_mails(text: str) -> Iterator[Find]:
    """E-mail addresses under a public suffix or one of a local network."""
    for match in identifiers.E_MAIL.finditer(text) if "@" in text else ():
        remote = match[0].startswith("git@") and text.startswith(":", match.end())  # git@host:path
        if not remote and suffixes()(match[0]).suffix:
            yield Find("EMAIL", *match.span())


def ibans(text: str) -> Iterator[Find]:
    """International bank account numbers, as long as their country's are."""
    for match in identifiers.IBAN_BEGINS.finditer(text):
        end = identifiers.iban_at(text, match.start())
        if end > 0:
            yield Find("IBAN", match.start(), end)


def hosts(text: str) -> Iterator[Find]:
    """Addresses of machines, versions 4 and 6."""
    for match in identifiers.MACHINE.finditer(text):
        before, behind = text[max(0, match.start() - 32) : match.start()], text[match.end() : match.end() + 2]
        if identifiers.is_ip(match[0], before, behind):
            yield Find("IP", *match.span())


@functools.cache
def suffixes() -> Callable[[str], Any]:
    """The list of public suffixes that tldextract brings along: it would fetch a newer one if it were let."""
    import tldextract

    return tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), extra_suffixes=identifiers.MACHINE_SUFFIXES)


FINDERS: tuple[Callable[[str], Iterator[Find]], ...] = (by_pattern, assigned, addresses, e_mails, ibans, hosts)
