"""Made-up personal identifiers and secrets with valid checksums, in prose, JSON and tables, beside look-alikes.

`documents(count)` gives texts with the place of every identifier in them. The checksums are computed here, apart
from the code under test. Nothing here belongs to anyone: every value is drawn from a seeded generator.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
from collections.abc import Callable
from pathlib import Path

LICENCES = Path(__file__).parents[1] / "data" / "licence_notices" / "test.jsonl"
Place = tuple[str, int, int]
Made = tuple[str, str, str, bool]  # kind, value, label, whether it can only be known by its label

FIRST = "anna ben chloé david elif farid grace hugo ines jonas kofi lena maría noah olga pedro quinn rosa sven tara".split()
LAST = "smith müller garcía rossi dubois novak okafor haddad jansen kowalska silva tanaka o'brien patel lindqvist".split()
DOMAINS = "example.com mail.example.org gmail.com web.de orange.fr uni-köln.de corp.example.co.uk posteo.de acme.io".split()


def number(rng: random.Random, length: int, first: str = string.digits) -> str:
    """Random digits, the first of them one of `first`."""
    return rng.choice(first) + "".join(rng.choices(string.digits, k=length - 1))


def letters(rng: random.Random, length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """Random characters, at least one of them a digit where the alphabet has digits."""
    drawn = rng.choices(alphabet, k=length)
    if "0" in alphabet:
        drawn[rng.randrange(1, length)] = rng.choice(string.digits)
    return "".join(drawn)


def luhn(body: str) -> str:
    """The body with Luhn's check digit behind it."""
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(body)))
    return body + str(-total % 10)


def grouped(digits: str, sizes: tuple[int, ...], sign: str) -> str:
    """The digits in groups of these sizes."""
    out, at = [], 0
    for size in sizes:
        out.append(digits[at : at + size])
        at += size
    return sign.join(out)


def e_mail(rng: random.Random) -> Made:
    first, last, domain = rng.choice(FIRST), rng.choice(LAST), rng.choice(DOMAINS)
    plain = last.encode("ascii", "ignore").decode().replace("'", "")
    local = rng.choice([f"{first}.{plain}", f"{first[0]}{plain}", f"{plain}_{rng.randrange(99)}", f"{first}+news", first.upper(), f"{first}-{plain}"])
    return "EMAIL", f"{local}@{domain}", rng.choice(["e-mail", "Email", "mail", "contact", "E-Mail-Adresse", "correo"]), False


def phone(rng: random.Random) -> Made:
    area, line = rng.choice("212 415 312 646 206 617 305 702 404 503".split()), number(rng, 7, "23456789")
    a, b, tail = line[:3], line[3:], number(rng, 6)
    options = [
        f"({area}) {a}-{b}", f"{area}-{a}-{b}", f"{area}.{a}.{b}", f"+1 {area} {a} {b}", f"+1-{area}-{a}-{b}", f"+1{area}{line}",
        f"1-800-{a}-{b}", f"({area}) {a}-{b} ext. {rng.randrange(10, 999)}", f"{area} {a} {b}", f"+49 30 {number(rng, 7, '2345678')}",
        f"0171 {number(rng, 7, '23456789')}", f"+49 (0)171 {number(rng, 7)}", f"0049 171 {number(rng, 7)}", f"030/{number(rng, 8, '23456')}",
        f"(089) {number(rng, 7, '2345678')}", f"01512{number(rng, 7)}", f"020 7{number(rng, 3)} {number(rng, 4)}",
        f"+44 20 7{number(rng, 3)} {number(rng, 4)}", f"07911 {tail}", f"01 42 {grouped(tail, (2, 2, 2), ' ')}",
        f"+33 1 42 {grouped(tail, (2, 2, 2), ' ')}", f"06.12.{grouped(tail, (2, 2, 2), '.')}", f"+34 612 {grouped(tail, (3, 3), ' ')}",
        f"612 {grouped(tail, (2, 2, 2), ' ')}", f"+39 06 {number(rng, 4, '4567')} {number(rng, 4)}", f"+91 98765 {number(rng, 5)}",
        f"98765 {number(rng, 5)}", f"06-{number(rng, 8, '12345')}", f"+41 44 668 {grouped(tail[:4], (2, 2), ' ')}",
        f"+55 11 9{number(rng, 4)}-{number(rng, 4)}", f"+48 601 {grouped(tail, (3, 3), ' ')}", f"+81 90-{number(rng, 4)}-{number(rng, 4)}",
    ]  # fmt: skip
    label = rng.choice(["phone", "Tel.", "mobile", "call", "Telefon", "Handy", "teléfono", "téléphone", "Fax"])
    if rng.random() < 0.12:
        return "PHONE", f"{area}{line}", label, True
    return "PHONE", rng.choice(options), label, False


def card(rng: random.Random) -> Made:
    label = rng.choice(["card", "credit card", "Visa", "Kreditkarte", "carte", "tarjeta"])
    kind = rng.randrange(8)
    if kind == 0:
        return "CARD", rng.choice([luhn("37" + number(rng, 12)), grouped(luhn("34" + number(rng, 12)), (4, 6, 5), rng.choice(" -"))]), label, False
    if kind == 1:
        return "CARD", rng.choice([luhn("36" + number(rng, 11)), grouped(luhn("38" + number(rng, 11)), (4, 6, 4), " ")]), label, False
    start = ["4", "4", "5" + rng.choice("12345"), str(rng.randrange(2221, 2721)), "6011", "3530"][kind - 2]
    value = luhn(start + number(rng, 15 - len(start)))
    return "CARD", rng.choice([value, grouped(value, (4, 4, 4, 4), " "), grouped(value, (4, 4, 4, 4), "-")]), label, False


def ssn(rng: random.Random) -> Made:
    area = rng.choice([n for n in range(1, 900) if n != 666])
    parts = (f"{area:03d}", f"{rng.randrange(1, 100):02d}", f"{rng.randrange(1, 10000):04d}")
    label = rng.choice(["SSN", "social security number", "Social Security No.", "ssn"])
    if rng.random() < 0.2:
        return "SSN", "".join(parts), label, True
    return "SSN", rng.choice("-- ").join(parts), label, False


IBANS = {
    "DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "ES": "n20", "IT": "a1n10c12", "NL": "a4n10", "BE": "n12", "AT": "n16",
    "CH": "n5c12", "PL": "n24", "SE": "n20", "PT": "n21", "NO": "n11", "IE": "a4n14", "CZ": "n20", "LU": "n3c13", "TR": "n5n1c16",
}  # fmt: skip


def iban(rng: random.Random) -> Made:
    country, body, sort = rng.choice(list(IBANS)), "", ""
    for c in IBANS[country] + " ":
        if not c.isdigit() and sort:
            alphabet = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}[sort[0]]
            body += "".join(rng.choices(alphabet, k=int(sort[1:])))
            sort = ""
        sort += c
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    value = f"{country}{check:02d}{body}"
    form = rng.choice([value, value, grouped(value, (4,) * -(-len(value) // 4), " "), value.lower(), grouped(value, (4,) * -(-len(value) // 4), "-")])
    return "IBAN", form, rng.choice(["IBAN", "account", "bank account", "Konto", "Bankverbindung", "cuenta"]), False


def ip(rng: random.Random) -> Made:
    label = rng.choice(["IP", "host", "client", "Server", "remote address"])
    if rng.random() < 0.35:
        groups = [f"{rng.randrange(1, 65536):x}" for _ in range(8)]
        return "IP", rng.choice([":".join(["2001", "db8", *groups[2:]]), f"2001:db8::{groups[0]}", f"fe80::{groups[1]}:{rng.randrange(16, 256):x}ff:fe{rng.randrange(16, 256):x}:{groups[4]}"]), label, False
    first = rng.choice([n for n in range(11, 224) if n != 127])
    return "IP", f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}", label, False


HEX = "0123456789abcdef"


def key(rng: random.Random) -> Made:
    token = string.ascii_letters + string.digits
    part = base64.urlsafe_b64encode(json.dumps({"sub": number(rng, 9), "name": rng.choice(FIRST)}).encode()).decode().rstrip("=")
    name = rng.choice(["RSA ", "EC ", "OPENSSH ", ""])
    lines = "\n".join(letters(rng, 64, token + "+/") for _ in range(3))
    options = [
        f"sk-proj-{letters(rng, 48, token + '_-')}x", f"sk-{letters(rng, 48)}", f"sk-ant-api03-{letters(rng, 60, token + '_-')}A",
        f"sk-or-v1-{letters(rng, 64, HEX)}", f"hf_{letters(rng, 34)}", f"ghp_{letters(rng, 36)}", f"github_pat_{letters(rng, 22)}_{letters(rng, 59)}",
        f"glpat-{letters(rng, 20)}", "AKIA" + letters(rng, 16, string.ascii_uppercase + string.digits), f"xoxb-{number(rng, 12)}-{number(rng, 12)}-{letters(rng, 24)}",
        f"AIza{letters(rng, 35)}", f"sk_live_{letters(rng, 24)}", f"npm_{letters(rng, 36)}", f"SG.{letters(rng, 22)}.{letters(rng, 43)}",
        f"gsk_{letters(rng, 52)}", f"eyJhbGciOiJIUzI1NiJ9.{part}.{letters(rng, 43)}", f"GOCSPX-{letters(rng, 28)}",
        f"-----BEGIN {name}PRIVATE KEY-----\n{lines}\n-----END {name}PRIVATE KEY-----", f"hvs.{letters(rng, 90)}",
    ]  # fmt: skip
    return "SECRET", rng.choice(options), rng.choice(["key", "token", "api key", "Schlüssel", "clé"]), False


def password(rng: random.Random) -> tuple[str, str, str]:
    """What stands before a secret that only its label gives away, the secret, and what stands behind."""
    word = rng.choice([
        letters(rng, 10), f"{rng.choice(FIRST).title()}{rng.randrange(10, 9999)}!", f"{letters(rng, 4)}&{letters(rng, 4)}#9",
        f"hunter{rng.randrange(10, 99)}", f"{letters(rng, 6)}-{letters(rng, 6)}-{letters(rng, 6)}", f"P@ss{number(rng, 4)}word",
    ])  # fmt: skip
    long = letters(rng, rng.choice([24, 32, 40]))
    only = "".join(rng.choices(string.ascii_lowercase, k=9))
    return rng.choice([
        ("password = ", word, ""), ('"password": "', word, '"'), ("DB_PASSWORD=", word, "\n"), ("pwd: ", word, ""), ("Passwort: ", word, ""),
        ("The password is ", word, " and it works."), ("Das Passwort lautet ", word, "."), ("Le mot de passe est ", word, "."),
        ("La contraseña es ", word, "."), ("api_key: ", long, ""), ('API_KEY="', long, '"'), ("export AWS_SECRET_ACCESS_KEY=", long, "\n"),
        ("client_secret = '", long, "'"), ("Authorization: Bearer ", long, "\n"), ("access_token=", long, ""), ("password='", only, "'"),
        ("mysql --password=", word, " -u root"), ("<password>", word, "</password>"), ("Server=db;User Id=sa;Password=", word, ";Database=x"),
        ('{"user": "bob", "passwd": "', word, '"}'), ("my password for the portal is ", word, "."), ("x-api-key: ", long, ""),
        ('password: str = "', word, '"'), ("secret_key => '", long, "'"), ("auth_token: ", long, "\n"), ("passphrase: ", word, "\n"),
    ])  # fmt: skip


def url(rng: random.Random) -> Made:
    word, long = letters(rng, 10), letters(rng, 24)
    options = [
        f"postgres://admin:{word}@db.example.com:5432/app", f"mongodb+srv://svc:{word}@cluster0.example.net/prod", f"redis://:{word}@10.2.3.4:6379/0",
        f"https://bob:{word}@git.example.com/team/repo.git", f"https://api.example.com/v1/items?access_token={long}&page=2",
        f"https://files.example.com/a.pdf?X-Amz-Signature={letters(rng, 64, HEX)}", f"https://example.com/signup?email={rng.choice(FIRST)}%40example.org",
        f"amqp://guest:{word}@mq.internal:5672/%2F", f"https://example.com/u?first_name={rng.choice(FIRST)}&last_name=Smith",
        f"https://{long}@git.example.com/team/repo.git", f"https://maps.example.com/api?q=Rome&key=A{long}",
    ]  # fmt: skip
    return "URL", rng.choice(options), rng.choice(["link", "see", "DSN", "Verbindung", "endpoint"]), False


def weighted(digits: str, weights: tuple[int, ...]) -> int:
    """The sum of the digits, each times its weight."""
    return sum(int(d) * w for d, w in zip(digits, weights))


def until(make: Callable[[], str]) -> str:
    """The first value that is not empty."""
    while not (value := make()):
        pass
    return value


def tax_germany(rng: random.Random) -> str:
    """IdNr: of ten digits one stands twice and none of them first is 0; ISO 7064 modulo 11, 10."""
    drawn = rng.sample(string.digits, 9)
    drawn.insert(rng.randrange(10), rng.choice(drawn))
    body, product = "".join(drawn), 10
    if body[0] == "0" or any(a == b == c for a, b, c in zip(body, body[1:], body[2:])):
        return ""
    for digit in body:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    value = body + str((11 - product) % 10)
    return rng.choice([value, grouped(value, (2, 3, 3, 3), " ")])


def pension_germany(rng: random.Random) -> str:
    day, letter = f"{rng.randrange(10, 80)}{rng.randrange(1, 29):02d}{rng.randrange(1, 13):02d}{rng.randrange(40, 99)}", rng.choice(string.ascii_uppercase)
    serial = f"{rng.randrange(100):02d}"
    spelled = f"{day}{ord(letter) - 64:02d}{serial}"
    products = [int(d) * w for d, w in zip(spelled, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1))]
    check = sum(p // 10 + p % 10 for p in products) % 10
    return rng.choice([f"{day}{letter}{serial}{check}", f"{day[:2]} {day[2:]} {letter} {serial}{check}"])


def social_france(rng: random.Random) -> str:
    body = f"{rng.choice('12')}{rng.randrange(40, 99)}{rng.randrange(1, 13):02d}{rng.choice(['75', '69', '13', '59', '33'])}{number(rng, 3, '1234')}{number(rng, 3)}"
    value = f"{body}{97 - int(body) % 97:02d}"
    return rng.choice([value, grouped(value, (1, 2, 2, 2, 3, 3, 2), " ")])


def spain(rng: random.Random) -> str:
    body, check = number(rng, 8), "TRWAGMYFPDXBNJZSQVHLCKE"
    if rng.random() < 0.4:
        first = rng.randrange(3)
        return "XYZ"[first] + rng.choice(["", "-"]) + body[1:] + rng.choice(["", "-"]) + check[int(f"{first}{body[1:]}") % 23]
    return body + rng.choice(["", "-"]) + check[int(body) % 23]


def italy(rng: random.Random) -> str:
    from stdnum.it.codicefiscale import calc_check_digit

    body = letters(rng, 6, "BCDFGLMNPRSTV") + f"{rng.randrange(30, 99)}{rng.choice('ABCDEHLMPRST')}{rng.randrange(1, 29):02d}{rng.choice('FHL')}{number(rng, 3)}"
    return body + calc_check_digit(body)


def eleven(rng: random.Random) -> str:
    return until(lambda: f"{n}" if weighted(n := number(rng, 9, "123456789"), (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 else "")


def health_britain(rng: random.Random) -> str:
    def one() -> str:
        body = number(rng, 9, "46")
        check = (11 - weighted(body, (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11) % 11
        return body + str(check) if check < 10 else ""

    return rng.choice([lambda v: v, lambda v: grouped(v, (3, 3, 4), " ")])(until(one))


def aadhaar(rng: random.Random) -> str:
    from stdnum.verhoeff import calc_check_digit

    body = number(rng, 11, "23456789")
    return grouped(body + calc_check_digit(body), (4, 4, 4), rng.choice("- "))


def brazil(rng: random.Random) -> str:
    body = number(rng, 9)
    for weights in ((10, 9, 8, 7, 6, 5, 4, 3, 2), (11, 10, 9, 8, 7, 6, 5, 4, 3, 2)):
        body += str((11 - weighted(body, weights) % 11) % 11 % 10)
    return rng.choice([body, f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"])


def day_of_birth(rng: random.Random) -> str:
    """Six digits: year, month, day."""
    return f"{rng.randrange(40, 99)}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}"


def poland(rng: random.Random) -> str:
    body = day_of_birth(rng) + number(rng, 4)
    return body + str(-weighted(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10)


def sweden(rng: random.Random) -> str:
    value = luhn(day_of_birth(rng) + number(rng, 3))
    return f"{value[:6]}-{value[6:]}"


def finland(rng: random.Random) -> str:
    day, serial = day_of_birth(rng), number(rng, 3, "12345678")
    day = day[4:] + day[2:4] + day[:2]
    return f"{day}-{serial}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(day + serial) % 31]}"


def switzerland(rng: random.Random) -> str:
    body = "756" + number(rng, 9)
    value = body + str(-weighted(body, (1, 3) * 6) % 10)
    return grouped(value, (3, 4, 4, 2), ".")


def belgium(rng: random.Random) -> str:
    body = day_of_birth(rng) + number(rng, 3, "1234")
    value = f"{body}{97 - int(body) % 97:02d}"
    return f"{value[:2]}.{value[2:4]}.{value[4:6]}-{value[6:9]}.{value[9:]}"


def chile(rng: random.Random) -> str:
    body = number(rng, 8, "12")
    check = "0123456789K0"[11 - sum(int(d) * (2 + i % 6) for i, d in enumerate(reversed(body))) % 11]
    return f"{body[:2]}.{body[2:5]}.{body[5:]}-{check}"


def singapore(rng: random.Random) -> str:
    first, body = rng.choice("STFG"), number(rng, 7)
    total = weighted(body, (2, 7, 6, 5, 4, 3, 2)) + 4 * (first in "TG")
    return first + body + ("JZIHGFEDCBA" if first in "ST" else "XWUTRQPNMLK")[total % 11]


CONSONANTS = "ACDEFGHJKMNPQRTUVWXY"
NATIONAL: list[tuple[Callable[[random.Random], str], str, bool]] = [
    (lambda rng: until(lambda: tax_germany(rng)), "Steuer-ID", False),
    (pension_germany, "Rentenversicherungsnummer", False),
    (social_france, "numéro de sécurité sociale", False),
    (spain, "DNI", False),
    (italy, "codice fiscale", False),
    (eleven, "BSN", True),
    (health_britain, "NHS number", True),
    (lambda rng: rng.choice(["AB", "CE", "JK", "PR", "SX"]) + rng.choice([number(rng, 6), grouped(number(rng, 6), (2, 2, 2), "")]) + rng.choice("ABCD"), "National Insurance number", False),
    (aadhaar, "Aadhaar", False),
    (lambda rng: f"{letters(rng, 3, string.ascii_uppercase)}P{rng.choice(string.ascii_uppercase)}{number(rng, 4, '123456789')}{rng.choice(string.ascii_uppercase)}", "PAN", False),
    (brazil, "CPF", False),
    (poland, "PESEL", False),
    (sweden, "personnummer", False),
    (finland, "henkilötunnus", False),
    (switzerland, "AHV-Nummer", False),
    (belgium, "rijksregisternummer", False),
    (chile, "RUT", False),
    (singapore, "NRIC", False),
    (lambda rng: f"9{number(rng, 2)}-{rng.choice(['70', '75', '81', '92', '55'])}-{number(rng, 4)}", "ITIN", False),
    (lambda rng: grouped(f"{rng.choice('123456789')}{rng.choice(CONSONANTS)}{rng.choice(CONSONANTS)}{rng.choice('0123456789')}{rng.choice(CONSONANTS)}{rng.choice('0123456789')}{rng.choice('0123456789')}{rng.choice(CONSONANTS)}{rng.choice(CONSONANTS)}{number(rng, 2)}", (4, 3, 4), rng.choice(["", "-"])), "Medicare number", False),
    (lambda rng: (lambda v: f"{v[:3]} {v[3:6]} {v[6:]}")(luhn(number(rng, 8, "1245679"))), "SIN", True),
]  # fmt: skip


def national(rng: random.Random) -> Made:
    make, label, needed = rng.choice(NATIONAL)
    return "ID", make(rng), label, needed


def passport(rng: random.Random) -> Made:
    label = rng.choice(["passport", "Passport No.", "passport number", "Reisepass", "passeport", "pasaporte"])
    value = rng.choice([number(rng, 9, "123456"), rng.choice("CFGHJ") + number(rng, 8), f"{letters(rng, 2, 'XYPA')}{number(rng, 7)}", f"{number(rng, 2, '12')}{letters(rng, 2, 'ABCDV')}{number(rng, 5)}"])
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
        return "ACCOUNT", f"{body}{check}", rng.choice(["routing number", "ABA routing number"]), True
    return "ACCOUNT", number(rng, rng.choice([8, 10, 12]), "123456789"), rng.choice(["account number", "bank account number", "Kontonummer"]), True


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
    value = rng.choice([f"{year}-{month:02d}-{day:02d}", f"{day:02d}.{month:02d}.{year}", f"{month}/{day}/{year}", f"{day} March {year}", f"May {day}, {year}"])
    return "BIRTHDATE", value, rng.choice(["DOB", "date of birth", "Geburtsdatum", "date de naissance", "fecha de nacimiento"]), True


MAKERS: list[tuple[Callable[[random.Random], Made], int]] = [
    (e_mail, 15), (phone, 18), (card, 12), (iban, 11), (ssn, 9), (national, 14), (ip, 8), (key, 8), (url, 3), (passport, 2),
    (device, 3), (account, 2), (wallet, 2), (birth_date, 2),
]  # fmt: skip
LABELLED = [
    "{label}: {v}", "{label} {v}", "{label}: {v}.", "My {label} is {v}, please note it.", "Their {label} ({v}) has changed.",
    "{label} = {v}\n", '{{"{label}": "{v}", "open": true}}', "- {label}: {v}\n", "| {label} | {v} |", "The {label} on file is {v}.",
    "Meine {label} ist {v}.", "{label} : {v} ; merci.", "Mi {label} es {v}, gracias.", "<b>{label}</b>: <i>{v}</i>", "{label}\t{v}\n",
    "{label}: '{v}'", "{label}=[{v}]", "> {label}: {v}", "**{label}**: `{v}`", "{label}:{v}",
]  # fmt: skip
BARE = [
    "{v}", "Please put {v} into the file.", "It was {v}, I think.", "Wrong: {v}; sorry!", "({v})", "[{v}]", "We only have {v}\n", "Bitte {v} eintragen.",
    "Merci de corriger {v} dans le dossier.", "Hay que cambiar {v} por favor.", "17,{v},open", "a;{v};b", "'{v}'", '"{v}"', "<td>{v}</td>", "> {v}",
    "* {v}\n", '{{"value": "{v}", "n": 3}}', "Was it {v}?", "{v} is right.", "It says {v}...", "{v} / unknown", "\t{v}\n", "_{v}_", "`{v}`",
]  # fmt: skip
FILLER = [
    "The customer wrote again last week.", "Nothing else has changed since then.", "Please see below.", "Der Vorgang ist noch offen.",
    "Le dossier est complet.", "No hay novedades.", "Permission is hereby granted, free of charge.", "Let us know by Friday.",
    "The team in Lisbon will look into it.", "Version control is set up.", "Redistribution is permitted under the conditions below.",
]  # fmt: skip


def look_alike(rng: random.Random) -> str:
    """A sentence with something that looks like an identifier and is none."""

    def wrong_card() -> str:
        value = luhn("4" + number(rng, 14))
        return value[:-1] + str((int(value[-1]) + rng.randrange(1, 10)) % 10)

    year, month, day = rng.randrange(1995, 2026), rng.randrange(1, 13), rng.randrange(1, 29)
    return rng.choice([
        f"Version {rng.randrange(1, 20)}.{rng.randrange(30)}.{rng.randrange(9)}.{rng.randrange(200)} is out.", f"Upgrade to v{rng.randrange(9)}.{rng.randrange(20)}.{rng.randrange(30)}-rc1.",
        f"Order {wrong_card()} was shipped.", f"Invoice no. {number(rng, 10)} is due.", f"Ticket #{number(rng, 7)} is closed.", f"Order number {grouped(wrong_card(), (4, 4, 4, 4), ' ')}.",
        f"Released on {year}-{month:02d}-{day:02d} at {rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}.", f"Stand {day:02d}.{month:02d}.{year}.",
        f"Built {year}{month:02d}{day:02d}T{rng.randrange(24):02d}0000Z.", f"Commit {letters(rng, 40, HEX)} broke it.", f"sha256:{letters(rng, 64, HEX)}", f"See {letters(rng, 7, HEX)}.",
        f"Request {uuid.UUID(int=rng.getrandbits(128))} failed.", f"ISBN 978-3-{number(rng, 2)}-{number(rng, 6)}-{number(rng, 1)}.", f"ISBN 0-{number(rng, 3)}-{number(rng, 5)}-{number(rng, 1)}.",
        f"It costs {rng.randrange(1, 999)},{number(rng, 3)}.{number(rng, 2)} EUR.", f"pi is {rng.random():.12f}.", f"x = {rng.randrange(-90, 90)}.{number(rng, 8)}", f"Took {number(rng, 9, '123456789')} ns.",
        f"Epoch {rng.randrange(1_500_000_000, 1_790_000_000)}.", f"ts={rng.randrange(1_500_000_000_000, 1_790_000_000_000)}", f"pp. {rng.randrange(100, 500)}-{rng.randrange(500, 900)}.",
        f"Copyright (c) {year - 9}-{year} The Authors.", "See https://www.gnu.org/licenses/gpl-3.0.en.html.", f"https://example.com/issues/{number(rng, 6)}?page=2", f"Article {number(rng, 13, '123456789')}.",
        "password: required", "Reset your password: click below.", "The token is expired.", "max_tokens=4096", "api_key = os.environ['API_KEY']", 'password = "<your password>"',
        f"{rng.randrange(2, 90)} 000 000 people live there.", f"Room {rng.randrange(100, 999)}-{rng.randrange(10, 99)}.", "std::vector<int>::iterator", "a[1::2]", f"{rng.randrange(24)}:{rng.randrange(10, 60)}::ok",
        "RFC 2822, section 3.4.1", f"Part No. {number(rng, 3)}-{number(rng, 4)}-{letters(rng, 2, 'ABC')}", f"EUR {rng.randrange(10, 99)}.{number(rng, 3)}.{number(rng, 3)},00", "icon@2x.png", "npm i left-pad@1.3.0",
        f"Chrome/{rng.randrange(90, 130)}.0.0.0 Safari/537.36", "127.0.0.1 and 0.0.0.0", "mask 255.255.255.0", f"OID 1.3.6.1.4.1.{number(rng, 5, '123')}", f"GPS 48.{number(rng, 6)}, 11.{number(rng, 6)}",
        f"{letters(rng, 4, string.ascii_uppercase)}-{number(rng, 4)}-{letters(rng, 4, string.ascii_uppercase)}", "The passport office is closed.", "Her date of birth is unknown.",
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

    Notices with an `@`, or words about one, are left out: real addresses stand in them.
    """
    rng, made, out = random.Random(seed), 0, []
    while made < count:
        wanted = min(rng.choice([1, 1, 2, 3]), count - made)
        out.append(document(rng, wanted))
        made += wanted
    out += [document(rng, 0) for _ in range(count // 5)]
    with LICENCES.open(encoding="utf-8") as lines:
        notices = [json.loads(line)["text"] for line in lines]
    return out + [(text, []) for text in notices if "@" not in text and " at " not in text.lower()]
