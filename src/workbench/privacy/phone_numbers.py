"""Phone numbers, and what tells them from dates, order numbers, decimals and time stamps.

Google's numbering plans (`phonenumbers`) are asked only once a form or a label speaks for a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.privacy.identifiers import NEAR_BEFORE, NEAR_BEHIND, WORD, Find, digits

# Countries whose numbers are looked for without their +: those that put a 0 before them at home, and those that do not.
WITH_ZERO = ("DE", "GB", "FR", "IT", "NL", "CH", "AT", "BE", "SE", "AU", "IE", "IN", "JP", "BR", "FI", "TR", "ZA")
WITHOUT_ZERO = ("ES", "IN", "PL", "IT", "PT", "BR", "NO", "DK", "MX", "CZ", "US")

RUN = re.compile(
    r"(?<![A-Za-z0-9+$€£])(?<![A-Za-z0-9]-)(?<!\d[.:/])(?<![\s(,\[=]\.)(?:\+|\(\+?)?\d(?:[\d ()/\-]|\.(?=\d)){5,30}\d"
    r"(?: ?(?:ext\.?|extension|x|#|Durchwahl|poste) ?\d{1,6}(?!\d))?(?![A-Za-z0-9%€$]|[.:\-/]\d)"
)
EXTENSION = re.compile(r" ?(?:ext|x|#|D|p)")  # where an extension begins
LABEL = (
    rf"(?:{WORD}(?i:tele?(?:phone|fon|fax)?|phones?|cell(?:phone|ular)?|mobile?|mobilnummer|call(?:ed|ing|s)?|fax|"
    r"whatsapp|sms|text(?:ed)? (?:me|him|her|us)|dial(?:ed)?|ring|reach|hotline|handy|anruf\w*|rufnummer|rückruf|"
    r"durchwahl|téléphon\w*|tél|portable|appel\w*|joindre|teléfono|móvil|llam\w+|telefon\w*|cellulare)(?![a-z])|[☎📞📱])"
)
BEFORE = re.compile(LABEL + r"[^\d\n]*\Z")
BEHIND = re.compile(r"\W{0,2}(?:\(|(?i:is|was|ist|est|es)\b)[^\d\n.;]{0,20}" + LABEL)
HERE = re.compile(
    LABEL + r"[\W_]{0,4}(?:(?i:is|at|no|nr|number|num|nummer|on|ist|unter|au|al|est|es)\W{1,4}){0,3}\Z",
)
OTHER_LABEL = re.compile(
    r"(?i)\b(?:isbn|issn|ean|gtin|upc|sku|doi|orders?|invoice|ticket|case|serial|part|article|item|tracking|ref|"
    r"reference|version|bestell\w*|rechnung\w*|artikel\w*|commande|facture|pedido|factura|build|id|uid|account|"
    r"revision|commit|hash|pp|pages?|issue|batch|lot|po|rfc)\b[ .:#=\"'-]*"
    r"(?:(?:is|number|num|nummer|no|nr|número|numéro)\b[ .:#=\"'-]*){0,2}\Z"
)
# Decimals, thousands, IP addresses, object identifiers, a volume and issue, ZIP codes, the row of all ten digits.
OTHER_NUMBER = re.compile(
    r"\d+\.\d+|\d{1,3}(?:\.\d{3})+|\d{1,3}(?:\.\d{1,3}){3}|(?:\d+\.)*\d\.\d[\d.]*|\d+(?:-\d+)? ?\(\d+\)|\d{5}-\d{4}|"
    r"\+0.*|0123456789"
)
DATE = re.compile(
    r"(?:(?:19|20)\d\d[-./ ][01]?\d[-./ ][0-3]?\d|[0-3]?\d[-./ ][0-3]?\d[-./ ](?:19|20)\d\d|"
    r"(?:19|20)\d\d ?- ?(?:19|20)\d\d)(?!\d)"
)
# With a leading 0 and groups, or bare; in pairs (Spain), fives (India), threes (Poland; no thousands); as in Brazil.
NATIONAL_FORM = re.compile(
    r"\(?0\d+\)?(?:[ ./\-]+\d{2,}){1,5}|\(0\d+\) ?\d{4,}|0[1-9]\d{8,10}|[6-9]\d{2} \d{2} \d{2} \d{2}|[6-9]\d{4} \d{5}|"
    r"[5-9]\d{2} \d{3} (?!000)\d{3}|\(?\d\d\)? 9?\d{4}-\d{4}"
)
NORTH_AMERICAN = re.compile(r"(?:\+?1[ .\-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .\-]))\d{3}(?(1)\1|[ .\-])\d{4}(?!\d)")


def phones(text: str) -> Iterator[Find]:
    """Phone numbers: international ones, North American ones, and those of WITH_ZERO and WITHOUT_ZERO."""
    for run in RUN.finditer(text):
        for tries in pieces(run[0]):
            for start, end in ((run.start() + a, run.start() + b) for a, b in tries):
                before = text[max(0, start - NEAR_BEFORE) : start].rpartition("\n")[2]
                behind = re.split(r"[\d.;\n]", text[end : end + NEAR_BEHIND])[0]
                if is_phone(text[start:end], before, behind):
                    yield Find("PHONE", start, end)
                    break


def pieces(run: str) -> list[list[tuple[int, int]]]:
    """For each part of a run of digits and signs, as in `A / B`, the stretches to try as a phone number.

    First the whole part, then without its first or its last group: `room 4 030 1234567`.
    """
    tries = []
    for part in re.finditer(r"[^ /\-](?:[^ ]| (?! |[/\-] ))*", run):
        piece, start = part[0].rstrip(" -/.("), part.start()
        if piece.startswith("(") and ")" not in piece:
            piece, start = piece[1:], start + 1
        end, first, last = start + len(piece), piece.find(" "), piece.rfind(" ")
        shorter = [(start + first + 1, end)] * (0 < first < 3) + [(start, start + last)] * (0 < last >= len(piece) - 3)
        tries.append([(start, end), *shorter])
    return tries


def is_phone(value: str, before: str, behind: str) -> bool:
    """Whether a run of digits is a phone number, judged also by the line before and the words behind it.

    An international form needs no more than its length. Any other needs its grouping, a leading 0 or a label: ten
    bare digits are more often an order number or a time stamp.
    """
    main = EXTENSION.split(value)[0]
    number = digits(main)
    if not 7 <= len(number) <= 16 or OTHER_NUMBER.fullmatch(value):
        return False
    if value.startswith(("+", "(+")):
        return len(number) >= 9 and not re.fullmatch(r"\+\d{1,3}[0 ]+", value)
    if DATE.match(value) or OTHER_LABEL.search(before):
        return False
    if NORTH_AMERICAN.fullmatch(main) or HERE.search(before):
        return True
    if BEFORE.search(before) or BEHIND.match(behind):
        return len(number) >= 9 or is_regional(value)
    return (value.startswith("00") or bool(NATIONAL_FORM.fullmatch(value))) and is_regional(value)


def is_regional(value: str) -> bool:
    """Whether the numbering plan of one of the countries holds the number: one that dials a 0 first, or none."""
    import phonenumbers

    for region in WITH_ZERO if value.lstrip("(").startswith("0") else WITHOUT_ZERO:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(value, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
