"""Each way of looking for identifiers in a text, but for phone numbers, which have a file of their own.

Nothing is downloaded, and nothing is read but the libraries' own tables when they are first needed.

An address (URL) counts only where it holds a password, a key or a person's data: licences, sources and manuals live
at public addresses, and a teacher that cannot read those cannot answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from workbench.privacy import credentials, identifiers
from workbench.privacy.identifiers import NEAR_BEFORE, NEAR_BEHIND, Find, Pattern
from workbench.privacy.national_ids import NATIONAL

PATTERNS: tuple[Pattern, ...] = (*credentials.CREDENTIALS, *identifiers.CONTACT, *NATIONAL)


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
    for regex in (credentials.ASSIGNED, credentials.OPTION):
        for match in regex.finditer(text):
            if credentials.is_assigned(match):
                yield Find("SECRET", *credentials.value_span(match))


def addresses(text: str) -> Iterator[Find]:
    """Addresses with a password, a key or a person's data inside."""
    for match in credentials.ADDRESS.finditer(text) if "://" in text else ():
        address = match[0].rstrip(".,;:!?)]}>")
        if credentials.is_telling(address):
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
