"""Each way of looking for identifiers in a text: our own patterns, and Presidio's recognisers where those are better.

Presidio proposes e-mail addresses, machines' addresses and phone and card numbers; what it misses, or takes for an
identifier and is none, is settled by our patterns and by the checks in `identifiers`. Its recognisers are asked one
by one: its engine would want a language model. Nothing is downloaded, and nothing here reads or writes but the
libraries' own tables when they are first needed.

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
from workbench.data.identifiers import Find, Pattern
from workbench.data.national_ids import NATIONAL

PATTERNS: tuple[Pattern, ...] = (*credentials.CREDENTIALS, *identifiers.CONTACT, *NATIONAL)
NEAR_BEFORE, NEAR_AFTER = 48, 28  # how far a label may stand from its number, in characters
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "IN", "BR", "AU", "CH", "AT", "BE", "PL", "SE", "PT", "IE", "MX")


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
    before, after = text[max(0, start - NEAR_BEFORE) : start], text[end : end + NEAR_AFTER]
    if pattern.check is bool:
        before, after = re.split(r"\d{4}", before)[-1], re.split(r"\d|[.;\n]", after)[0]
    return bool(pattern.label and (pattern.label.search(before) or pattern.label.search(after)))


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


def phones(text: str) -> Iterator[Find]:
    """Phone numbers, international and of the REGIONS."""
    for run in identifiers.PHONE_RUN.finditer(text):
        for tries in identifiers.phone_pieces(run[0]):
            for start, end in ((run.start() + a, run.start() + b) for a, b in tries):
                before = text[max(0, start - NEAR_BEFORE) : start].rpartition("\n")[2]
                after = re.split(r"[\d.;\n]", text[end : end + NEAR_AFTER])[0]
                if identifiers.is_phone(text[start:end], before, after, is_regional):
                    yield Find("PHONE", start, end)
                    break


def is_regional(value: str) -> bool:
    """Whether the whole value is a valid number under the numbering plan of one of the REGIONS."""
    results = presidio()["PHONE"].analyze(value, ["PHONE_NUMBER"])
    return any(result.end - result.start >= len(value) - 1 for result in results)


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
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IpRecognizer,
        PhoneRecognizer,
    )

    logging.getLogger("presidio-analyzer").disabled = True  # it writes what it cannot parse, which may be a secret
    # Its e-mail check would fetch the list of public suffixes: the copy inside tldextract answers instead.
    suffixes = tldextract.TLDExtract(
        cache_dir=None, suffix_list_urls=(), extra_suffixes=identifiers.MACHINE_SUFFIXES
    )
    e_mail = EmailRecognizer(patterns=[Proposal("e-mail", identifiers.E_MAIL, 0.5)])
    e_mail.validate_result = lambda value: bool(suffixes(value).suffix)
    address = IpRecognizer(patterns=[Proposal("address", identifiers.MACHINE, 0.5)])
    phone = PhoneRecognizer(supported_regions=REGIONS)
    return {"EMAIL": e_mail, "IP": address, "CARD": CreditCardRecognizer(), "PHONE": phone}


FINDERS: tuple[Callable[[str], Iterator[Find]], ...] = (by_pattern, assigned, addresses, e_mails, ibans, hosts, cards)
