"""Each way of looking for identifiers in a text, but for phone numbers, which have a file of their own.

Our tables of patterns come first. Presidio's recognisers find e-mail addresses, addresses of machines (both with
patterns written here: its own miss `_10.1.2.3_` and take `mail=jane@…` for one name) and card numbers in odd groups;
the checks in `identifiers` decide on what they propose. They are asked one by one: Presidio's engine would want a
language model. Nothing is downloaded, and nothing is read but the libraries' own tables when they are first needed.

An address (URL) counts only where it holds a password, a key or a person's data: licences, sources and manuals live
at public addresses, and a teacher that cannot read those cannot answer.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from workbench.data import credentials, identifiers
from workbench.data.identifiers import NEAR_BEFORE, NEAR_BEHIND, Find, Pattern
from workbench.data.national_ids import NATIONAL

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
    if "@" not in text:
        return
    for result in presidio()["EMAIL"].analyze(text, ["EMAIL_ADDRESS"]):
        if not (text.startswith("git@", result.start) and text.startswith(":", result.end)):  # git@host:path
            yield Find("EMAIL", result.start, result.end)


def ibans(text: str) -> Iterator[Find]:
    """International bank account numbers, as long as their country's are."""
    for match in identifiers.IBAN_BEGINS.finditer(text):
        end = identifiers.iban_at(text, match.start())
        if end > 0:
            yield Find("IBAN", match.start(), end)


def hosts(text: str) -> Iterator[Find]:
    """Addresses of machines, versions 4 and 6."""
    if not re.search(r"\d\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f:]", text):
        return
    for result in presidio()["IP"].analyze(text, ["IP_ADDRESS"]):
        value, before = text[result.start : result.end], text[max(0, result.start - 32) : result.start]
        if identifiers.is_ip(value, before, text[result.end : result.end + 2]):
            yield Find("IP", result.start, result.end)


def cards(text: str) -> Iterator[Find]:
    """Payment card numbers that the patterns' groupings miss."""
    if not re.search(r"\d{3}[ -]?\d{3}", text):
        return
    for result in presidio()["CARD"].analyze(text, ["CREDIT_CARD"]):
        around = text[max(0, result.start - 2) : result.start], text[result.end : result.end + 2]
        parted = not (re.search(r"\w$|\d[.\-]$", around[0]) or re.match(r"\w|[.\-]\d", around[1]))
        if parted and identifiers.is_card(text[result.start : result.end]):
            yield Find("CARD", result.start, result.end)


@functools.cache
def presidio() -> Mapping[str, Any]:
    """Presidio's recognisers, by our kind: loaded when a text first needs one, and kept from network and log."""
    import tldextract
    from presidio_analyzer import Pattern as Proposal
    from presidio_analyzer.predefined_recognizers import CreditCardRecognizer, EmailRecognizer, IpRecognizer

    logging.getLogger("presidio-analyzer").disabled = True  # it writes what it cannot parse, which may be a secret
    # Its e-mail check would fetch the list of public suffixes: the copy inside tldextract answers instead.
    suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), extra_suffixes=identifiers.MACHINE_SUFFIXES)
    e_mail: Any = EmailRecognizer(patterns=[Proposal("e-mail", identifiers.E_MAIL, 0.5)])
    e_mail.validate_result = lambda value: bool(suffixes(value).suffix)
    address = IpRecognizer(patterns=[Proposal("address", identifiers.MACHINE, 0.5)])
    return {"EMAIL": e_mail, "IP": address, "CARD": CreditCardRecognizer()}


FINDERS: tuple[Callable[[str], Iterator[Find]], ...] = (by_pattern, assigned, addresses, e_mails, ibans, hosts, cards)
