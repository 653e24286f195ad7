"""Made-up personal identifiers and secrets with valid checksums, in prose, JSON and tables, beside look-alikes.

`documents(count)` gives texts with the place of every identifier in them. The checksums are computed here, apart
from the code under test. Nothing here belongs to anyone: every value is drawn from a seeded generator.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import string
import uuid
from collections.abc import Callable
from pathlib import Path

from national_numbers import NATIONAL, grouped, letters, luhn, number, weighted

LICENCES = Path(__file__).parents[2] / "data" / "licence_notices" / "test.jsonl"
Place = tuple[str, int, int]
Made = tuple[str, str, str, bool]  # kind, value, label, whether it can only be known by its label

FIRST = "anna|ben|chloé|david|elif|farid|grace|hugo|ines|jonas|kofi|lena|maría|noah|olga|pedro|quinn|rosa|sven|tara"
LAST = "smith|müller|garcía|rossi|dubois|novak|okafor|haddad|jansen|kowalska|silva|tanaka|o'brien|patel|lindqvist"
DOMAINS = "example.com|mail.example.org|gmail.com|web.de|orange.fr|uni-köln.de|corp.example.co.uk|posteo.de|acme.io"
HEX = "0123456789abcdef"


def one(rng: random.Random, words: str) -> str:
    """One of the words between the bars."""
    return rng.choice(words.split("|"))


def e_mail(rng: random.Random) -> Made:
    first, last, domain = one(rng, FIRST), one(rng, LAST), one(rng, DOMAINS)
    last = last.encode("ascii", "ignore").decode().replace("'", "")
    local = one(
        rng, f"{first}.{last}|{first[0]}{last}|{last}_{rng.randrange(99)}|{first}+news|{first.upper()}|{first}-{last}"
    )
    return "EMAIL", f"{local}@{domain}", one(rng, "e-mail|Email|mail|contact|E-Mail-Adresse|correo"), False


def phone(rng: random.Random) -> Made:
    area, line = one(rng, "212|415|312|646|206|617|305|702|404|503"), number(rng, 7, "23456789")
    a, b, tail = line[:3], line[3:], number(rng, 6)
    options = [
        f"({area}) {a}-{b}", f"{area}-{a}-{b}", f"{area}.{a}.{b}", f"+1 {area} {a} {b}", f"+1-{area}-{a}-{b}",
        f"+1{area}{line}", f"1-800-{a}-{b}", f"({area}) {a}-{b} ext. {rng.randrange(10, 999)}", f"{area} {a} {b}",
        f"+49 30 {number(rng, 7, '2345678')}", f"0171 {number(rng, 7, '23456789')}", f"+49 (0)171 {number(rng, 7)}",
        f"0049 171 {number(rng, 7)}", f"030/{number(rng, 8, '23456')}", f"(089) {number(rng, 7, '2345678')}",
        f"01512{number(rng, 7)}", f"020 7{number(rng, 3)} {number(rng, 4)}",
        f"+44 20 7{number(rng, 3)} {number(rng, 4)}", f"07911 {tail}", f"01 42 {grouped(tail, (2, 2, 2), ' ')}",
        f"+33 1 42 {grouped(tail, (2, 2, 2), ' ')}", f"06.12.{grouped(tail, (2, 2, 2), '.')}",
        f"+34 612 {grouped(tail, (3, 3), ' ')}", f"612 {grouped(tail, (2, 2, 2), ' ')}",
        f"+39 06 {number(rng, 4, '4567')} {number(rng, 4)}", f"+91 98765 {number(rng, 5)}", f"98765 {number(rng, 5)}",
        f"06-{number(rng, 8, '12345')}", f"+41 44 668 {grouped(tail[:4], (2, 2), ' ')}",
        f"+55 11 9{number(rng, 4)}-{number(rng, 4)}", f"+48 601 {grouped(tail, (3, 3), ' ')}",
        f"+81 90-{number(rng, 4)}-{number(rng, 4)}",
    ]  # fmt: skip
    label = one(rng, "phone|Tel.|mobile|call|Telefon|Handy|teléfono|téléphone|Fax")
    if rng.random() < 0.12:
        return "PHONE", f"{area}{line}", label, True
    return "PHONE", rng.choice(options), label, False


def card(rng: random.Random) -> Made:
    start = one(rng, f"4|4|5{one(rng, '1|2|3|4|5')}|{rng.randrange(2221, 2721)}|6011|3530|34|37|36|38")
    size = {"34": 15, "37": 15, "36": 14, "38": 14}.get(start, 16)
    value = luhn(start + number(rng, size - 1 - len(start)))
    sizes = {15: (4, 6, 5), 14: (4, 6, 4), 16: (4, 4, 4, 4)}[size]
    value = rng.choice([value, grouped(value, sizes, " "), grouped(value, sizes, "-")])
    return "CARD", value, one(rng, "card|credit card|Visa|Kreditkarte|carte|tarjeta"), False


def ssn(rng: random.Random) -> Made:
    area = rng.choice([n for n in range(1, 900) if n != 666])
    parts = (f"{area:03d}", f"{rng.randrange(1, 100):02d}", f"{rng.randrange(1, 10000):04d}")
    label = one(rng, "SSN|social security number|Social Security No.|ssn")
    if rng.random() < 0.2:
        return "SSN", "".join(parts), label, True
    return "SSN", rng.choice("-- ").join(parts), label, False


IBANS = {
    "DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "ES": "n20", "IT": "a1n10c12", "NL": "a4n10", "BE": "n12",
    "AT": "n16", "CH": "n5c12", "PL": "n24", "SE": "n20", "PT": "n21", "NO": "n11", "IE": "a4n14", "CZ": "n20",
    "LU": "n3c13", "TR": "n6c16",
}  # fmt: skip


def iban(rng: random.Random) -> Made:
    country = rng.choice(list(IBANS))
    alphabets = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}
    drawn = [rng.choices(alphabets[sort], k=int(size)) for sort, size in re.findall(r"([nac])(\d+)", IBANS[country])]
    body = "".join(c for part in drawn for c in part)
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    value = f"{country}{check:02d}{body}"
    fours = (4,) * -(-len(value) // 4)
    form = rng.choice([value, value, grouped(value, fours, " "), value.lower(), grouped(value, fours, "-")])
    return "IBAN", form, one(rng, "IBAN|account|bank account|Konto|Bankverbindung|cuenta"), False


def ip(rng: random.Random) -> Made:
    label = one(rng, "IP|host|client|Server|remote address")
    if rng.random() < 0.35:
        a, b, c, d, e, f = (f"{rng.randrange(256, 65536):x}" for _ in range(6))
        return (
            "IP",
            one(rng, f"2001:db8:{a}:{b}:{c}:{d}:{e}:{f}|2001:db8::{a}|fe80::{a}:{b[:2]}ff:fe{c[:2]}:{d}"),
            label,
            False,
        )
    first = rng.choice([n for n in range(11, 224) if n != 127])
    return "IP", f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}", label, False


def key(rng: random.Random) -> Made:
    token = string.ascii_letters + string.digits
    claims = json.dumps({"sub": number(rng, 9), "name": one(rng, FIRST)}).encode()
    part = base64.urlsafe_b64encode(claims).decode().rstrip("=")
    name = one(rng, "RSA |EC |OPENSSH |")
    lines = "\n".join(letters(rng, 64, token + "+/") for _ in range(3))
    options = [
        f"sk-proj-{letters(rng, 48, token + '_-')}x", f"sk-{letters(rng, 48)}",
        f"sk-ant-api03-{letters(rng, 60, token + '_-')}A", f"sk-or-v1-{letters(rng, 64, HEX)}",
        f"hf_{letters(rng, 34)}", f"ghp_{letters(rng, 36)}", f"github_pat_{letters(rng, 22)}_{letters(rng, 59)}",
        f"glpat-{letters(rng, 20)}", "AKIA" + letters(rng, 16, string.ascii_uppercase + string.digits),
        f"xoxb-{number(rng, 12)}-{number(rng, 12)}-{letters(rng, 24)}", f"AIza{letters(rng, 35)}",
        f"sk_live_{letters(rng, 24)}", f"npm_{letters(rng, 36)}", f"SG.{letters(rng, 22)}.{letters(rng, 43)}",
        f"gsk_{letters(rng, 52)}", f"eyJhbGciOiJIUzI1NiJ9.{part}.{letters(rng, 43)}", f"GOCSPX-{letters(rng, 28)}",
        f"-----BEGIN {name}PRIVATE KEY-----\n{lines}\n-----END {name}PRIVATE KEY-----", f"hvs.{letters(rng, 90)}",
    ]  # fmt: skip
    return "SECRET", rng.choice(options), one(rng, "key|token|api key|Schlüssel|clé"), False


def password(rng: random.Random) -> tuple[str, str, str]:
    """What stands before a secret that only its label gives away, the secret, and what stands behind."""
    word = rng.choice([
        letters(rng, 10), f"{one(rng, FIRST).title()}{rng.randrange(10, 9999)}!",
        f"{letters(rng, 4)}&{letters(rng, 4)}#9", f"hunter{rng.randrange(10, 99)}",
        f"{letters(rng, 6)}-{letters(rng, 6)}-{letters(rng, 6)}", f"P@ss{number(rng, 4)}word",
    ])  # fmt: skip
    long = letters(rng, rng.choice([24, 32, 40]))
    only = "".join(rng.choices(string.ascii_lowercase, k=9))
    return rng.choice([
        ("password = ", word, ""), ('"password": "', word, '"'), ("DB_PASSWORD=", word, "\n"), ("pwd: ", word, ""),
        ("Passwort: ", word, ""), ("The password is ", word, " and it works."), ("Das Passwort lautet ", word, "."),
        ("Le mot de passe est ", word, "."), ("La contraseña es ", word, "."), ("api_key: ", long, ""),
        ('API_KEY="', long, '"'), ("export AWS_SECRET_ACCESS_KEY=", long, "\n"), ("client_secret = '", long, "'"),
        ("Authorization: Bearer ", long, "\n"), ("access_token=", long, ""), ("password='", only, "'"),
        ("mysql --password=", word, " -u root"), ("<password>", word, "</password>"),
        ("Server=db;User Id=sa;Password=", word, ";Database=x"), ('{"user": "bob", "passwd": "', word, '"}'),
        ("my password for the portal is ", word, "."), ("x-api-key: ", long, ""), ('password: str = "', word, '"'),
        ("secret_key => '", long, "'"), ("auth_token: ", long, "\n"), ("passphrase: ", word, "\n"),
    ])  # fmt: skip


def url(rng: random.Random) -> Made:
    word, long = letters(rng, 10), letters(rng, 24)
    options = [
        f"postgres://admin:{word}@db.example.com:5432/app", f"mongodb+srv://svc:{word}@cluster0.example.net/prod",
        f"redis://:{word}@10.2.3.4:6379/0", f"https://bob:{word}@git.example.com/team/repo.git",
        f"https://api.example.com/v1/items?access_token={long}&page=2",
        f"https://files.example.com/a.pdf?X-Amz-Signature={letters(rng, 64, HEX)}",
        f"https://example.com/signup?email={one(rng, FIRST)}%40example.org",
        f"amqp://guest:{word}@mq.internal:5672/%2F",
        f"https://example.com/u?first_name={one(rng, FIRST)}&last_name=Smith",
        f"https://{long}@git.example.com/team/repo.git", f"https://maps.example.com/api?q=Rome&key=A{long}",
    ]  # fmt: skip
    return "URL", rng.choice(options), one(rng, "link|see|DSN|Verbindung|endpoint"), False


def national(rng: random.Random) -> Made:
    make, label, needed = rng.choice(NATIONAL)
    return "ID", make(rng), label, needed


def passport(rng: random.Random) -> Made:
    label = one(rng, "passport|Passport No.|passport number|Reisepass|passeport|pasaporte")
    value = rng.choice([
        number(rng, 9, "123456"), rng.choice("CFGHJ") + number(rng, 8), f"{letters(rng, 2, 'XYPA')}{number(rng, 7)}",
        f"{number(rng, 2, '12')}{letters(rng, 2, 'ABCDV')}{number(rng, 5)}",
    ])  # fmt: skip
    return "PASSPORT", value, label, True


def device(rng: random.Random) -> Made:
    if rng.random() < 0.3:
        return "DEVICE", luhn("35" + number(rng, 12)), "IMEI", True
    pairs = [f"{rng.randrange(256):02x}" for _ in range(6)]
    return "DEVICE", rng.choice([":".join(pairs), ":".join(pairs).upper(), "-".join(pairs).upper()]), "MAC", False


def account(rng: random.Random) -> Made:
    if rng.random() < 0.5:
        body = rng.choice("0123") + number(rng, 7)
        check = -weighted(body, (3, 7, 1, 3, 7, 1, 3, 7)) % 10
        return "ACCOUNT", f"{body}{check}", one(rng, "routing number|ABA routing number"), True
    value = number(rng, rng.choice([8, 10, 12]), "123456789")
    return "ACCOUNT", value, one(rng, "account number|bank account number|Kontonummer"), True


def wallet(rng: random.Random) -> Made:
    if rng.random() < 0.4:
        return "WALLET", "0x" + letters(rng, 40, HEX), "ETH", False
    body = rng.choice([b"\x00", b"\x05"]) + rng.randbytes(20)
    body += hashlib.sha256(hashlib.sha256(body).digest()).digest()[:4]
    value, rest = "", int.from_bytes(body, "big")
    while rest:
        rest, digit = divmod(rest, 58)
        value = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + value
    return "WALLET", "1" * (len(body) - len(body.lstrip(b"\x00"))) + value, "BTC", False


def birth_date(rng: random.Random) -> Made:
    year, month, day = rng.randrange(1930, 2012), rng.randrange(1, 13), rng.randrange(1, 29)
    numbers = f"{year}-{month:02d}-{day:02d}|{day:02d}.{month:02d}.{year}|{month}/{day}/{year}"
    value = one(rng, f"{numbers}|{day} March {year}|May {day}, {year}")
    return "BIRTHDATE", value, one(rng, "DOB|date of birth|Geburtsdatum|date de naissance|fecha de nacimiento"), True


MAKERS: list[tuple[Callable[[random.Random], Made], int]] = [
    (e_mail, 15), (phone, 18), (card, 12), (iban, 11), (ssn, 9), (national, 14), (ip, 8), (key, 8), (url, 3),
    (passport, 2), (device, 3), (account, 2), (wallet, 2), (birth_date, 2),
]  # fmt: skip
LABELLED = [
    "{label}: {v}", "{label} {v}", "{label}: {v}.", "My {label} is {v}, please note it.",
    "Their {label} ({v}) has changed.", "{label} = {v}\n", '{{"{label}": "{v}", "open": true}}', "- {label}: {v}\n",
    "| {label} | {v} |", "The {label} on file is {v}.", "Meine {label} ist {v}.", "{label} : {v} ; merci.",
    "Mi {label} es {v}, gracias.", "<b>{label}</b>: <i>{v}</i>", "{label}\t{v}\n", "{label}: '{v}'", "{label}=[{v}]",
    "> {label}: {v}", "**{label}**: `{v}`", "{label}:{v}",
]  # fmt: skip
BARE = [
    "{v}", "Please put {v} into the file.", "It was {v}, I think.", "Wrong: {v}; sorry!", "({v})", "[{v}]",
    "We only have {v}\n", "Bitte {v} eintragen.", "Merci de corriger {v} dans le dossier.",
    "Hay que cambiar {v} por favor.", "17,{v},open", "a;{v};b", "'{v}'", '"{v}"', "<td>{v}</td>", "> {v}", "* {v}\n",
    '{{"value": "{v}", "n": 3}}', "Was it {v}?", "{v} is right.", "It says {v}...", "{v} / unknown", "\t{v}\n", "_{v}_",
    "`{v}`",
]  # fmt: skip
FILLER = [
    "The customer wrote again last week.", "Nothing else has changed since then.", "Please see below.",
    "Der Vorgang ist noch offen.", "Le dossier est complet.", "No hay novedades.",
    "Permission is hereby granted, free of charge.", "Let us know by Friday.", "The team in Lisbon will look into it.",
    "Version control is set up.", "Redistribution is permitted under the conditions below.",
]  # fmt: skip


def look_alike(rng: random.Random) -> str:
    """A sentence with something that looks like an identifier and is none."""

    def wrong_card() -> str:
        value = luhn("4" + number(rng, 14))
        return value[:-1] + str((int(value[-1]) + rng.randrange(1, 10)) % 10)

    year, month, day = rng.randrange(1995, 2026), rng.randrange(1, 13), rng.randrange(1, 29)
    return rng.choice([
        f"Version {rng.randrange(1, 20)}.{rng.randrange(30)}.{rng.randrange(9)}.{rng.randrange(200)} is out.",
        f"Upgrade to v{rng.randrange(9)}.{rng.randrange(20)}.{rng.randrange(30)}-rc1.",
        f"Order {wrong_card()} was shipped.", f"Invoice no. {number(rng, 10)} is due.",
        f"Ticket #{number(rng, 7)} is closed.", f"Order number {grouped(wrong_card(), (4, 4, 4, 4), ' ')}.",
        f"Released on {year}-{month:02d}-{day:02d} at {rng.randrange(10, 24)}:{rng.randrange(10, 60)}:00.",
        f"Stand {day:02d}.{month:02d}.{year}.", f"Built {year}{month:02d}{day:02d}T{rng.randrange(24):02d}0000Z.",
        f"Commit {letters(rng, 40, HEX)} broke it.", f"sha256:{letters(rng, 64, HEX)}", f"See {letters(rng, 7, HEX)}.",
        f"Request {uuid.UUID(int=rng.getrandbits(128))} failed.",
        f"ISBN 978-3-{number(rng, 2)}-{number(rng, 6)}-{number(rng, 1)}.",
        f"ISBN 0-{number(rng, 3)}-{number(rng, 5)}-{number(rng, 1)}.",
        f"It costs {rng.randrange(1, 999)},{number(rng, 3)}.{number(rng, 2)} EUR.", f"pi is {rng.random():.12f}.",
        f"x = {rng.randrange(-90, 90)}.{number(rng, 8)}", f"Took {number(rng, 9, '123456789')} ns.",
        f"Epoch {rng.randrange(1_500_000_000, 1_790_000_000)}.",
        f"ts={rng.randrange(1_500_000_000_000, 1_790_000_000_000)}",
        f"pp. {rng.randrange(100, 500)}-{rng.randrange(500, 900)}.", f"Copyright (c) {year - 9}-{year} The Authors.",
        "See https://www.gnu.org/licenses/gpl-3.0.en.html.", f"https://example.com/issues/{number(rng, 6)}?page=2",
        f"Article {number(rng, 13, '123456789')}.", "password: required", "Reset your password: click below.",
        "The token is expired.", "max_tokens=4096", "api_key = os.environ['API_KEY']", 'password = "<your password>"',
        f"{rng.randrange(2, 90)} 000 000 people live there.",
        f"Room {rng.randrange(100, 999)}-{rng.randrange(10, 99)}.", "std::vector<int>::iterator", "a[1::2]",
        f"{rng.randrange(24)}:{rng.randrange(10, 60)}::ok", "RFC 2822, section 3.4.1",
        f"Part No. {number(rng, 3)}-{number(rng, 4)}-{letters(rng, 2, 'ABC')}",
        f"EUR {rng.randrange(10, 99)}.{number(rng, 3)}.{number(rng, 3)},00", "icon@2x.png", "npm i left-pad@1.3.0",
        f"Chrome/{rng.randrange(90, 130)}.0.0.0 Safari/537.36", "127.0.0.1 and 0.0.0.0", "mask 255.255.255.0",
        f"OID 1.3.6.1.4.1.{number(rng, 5, '123')}", f"GPS 48.{number(rng, 6)}, 11.{number(rng, 6)}",
        f"{letters(rng, 4, string.ascii_uppercase)}-{number(rng, 4)}-{letters(rng, 4, string.ascii_uppercase)}",
        "The passport office is closed.", "Her date of birth is unknown.",
    ])  # fmt: skip


def document(rng: random.Random, wanted: int) -> tuple[str, list[Place]]:
    """A text of a few sentences with `wanted` identifiers, and the place of each."""
    parts: list[tuple[str, str, str, str]] = [("", "", rng.choice(FILLER), "") for _ in range(rng.randrange(3))]
    parts += [("", "", look_alike(rng), "") for _ in range(rng.choice([0, 1, 1, 2]))]
    for _ in range(wanted):
        if rng.random() < 0.06:
            before, value, behind = password(rng)
            parts.append(("SECRET", value, before, behind))
            continue
        kind, value, label, needed = rng.choices([m for m, _ in MAKERS], [w for _, w in MAKERS])[0](rng)
        template = rng.choice(LABELLED if needed or rng.random() < 0.5 else BARE)
        before, behind = template.replace("{{", "{").replace("}}", "}").replace("{label}", label).split("{v}")
        parts.append((kind, value, before, behind))
    rng.shuffle(parts)
    text, places = "", []
    for kind, value, before, behind in parts:
        text += before
        if kind:
            places.append((kind, len(text), len(text) + len(value)))
        text += value + behind
        text += "" if text.endswith("\n") else rng.choice([" ", " ", "\n"])
    return text, places


def documents(count: int, seed: int = 7) -> list[tuple[str, list[Place]]]:
    """Texts that hold `count` identifiers between them, texts with look-alikes only, and licence notices.

    Notices with an `@` are left out: real addresses stand in them.
    """
    rng, made, out = random.Random(seed), 0, []
    while made < count:
        wanted = min(rng.choice([1, 1, 2, 3]), count - made)
        out.append(document(rng, wanted))
        made += wanted
    out += [document(rng, 0) for _ in range(count // 5)]
    with LICENCES.open(encoding="utf-8") as lines:
        notices = [json.loads(line)["text"] for line in lines]
    return out + [(text, []) for text in notices if "@" not in text]
