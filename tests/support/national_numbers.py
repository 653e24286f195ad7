"""Made-up numbers such as states give a person, with valid checksums computed apart from the code under test."""

from __future__ import annotations

import random
import string
from collections.abc import Callable


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


def weighted(digits: str, weights: tuple[int, ...]) -> int:
    """The sum of the digits, each times its weight."""
    return sum(int(d) * w for d, w in zip(digits, weights))


def until(make: Callable[[], str]) -> str:
    """The first value that is not empty."""
    while not (value := make()):
        pass
    return value


def tax_germany(rng: random.Random) -> str:
    """IdNr: of ten digits, the first not 0, one stands twice; ISO 7064 modulo 11, 10."""

    def ten() -> str:
        drawn = rng.sample(string.digits, 9)
        drawn.insert(rng.randrange(10), rng.choice(drawn))
        return "".join(drawn) if drawn[0] != "0" else ""

    body, product = until(ten), 10
    for digit in body:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    value = body + str((11 - product) % 10)
    return rng.choice([value, grouped(value, (2, 3, 3, 3), " ")])


def pension_germany(rng: random.Random) -> str:
    day = f"{rng.randrange(10, 80)}{rng.randrange(1, 29):02d}{rng.randrange(1, 13):02d}{rng.randrange(40, 99)}"
    letter = rng.choice(string.ascii_uppercase)
    serial = f"{rng.randrange(100):02d}"
    spelled = f"{day}{ord(letter) - 64:02d}{serial}"
    products = [int(d) * w for d, w in zip(spelled, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1))]
    check = sum(p // 10 + p % 10 for p in products) % 10
    return rng.choice([f"{day}{letter}{serial}{check}", f"{day[:2]} {day[2:]} {letter} {serial}{check}"])


def social_france(rng: random.Random) -> str:
    born, place = f"{rng.randrange(40, 99)}{rng.randrange(1, 13):02d}", rng.choice(["75", "69", "13", "59", "33"])
    body = f"{rng.choice('12')}{born}{place}{number(rng, 3, '1234')}{number(rng, 3)}"
    value = f"{body}{97 - int(body) % 97:02d}"
    return rng.choice([value, grouped(value, (1, 2, 2, 2, 3, 3, 2), " ")])


def spain(rng: random.Random) -> str:
    body, check = number(rng, 8), "TRWAGMYFPDXBNJZSQVHLCKE"
    if rng.random() < 0.4:
        first = rng.randrange(3)
        return (
            "XYZ"[first]
            + rng.choice(["", "-"])
            + body[1:]
            + rng.choice(["", "-"])
            + check[int(f"{first}{body[1:]}") % 23]
        )
    return body + rng.choice(["", "-"]) + check[int(body) % 23]


def italy(rng: random.Random) -> str:
    from stdnum.it.codicefiscale import calc_check_digit

    born = f"{rng.randrange(30, 99)}{rng.choice('ABCDEHLMPRST')}{rng.randrange(1, 29):02d}"
    body = f"{letters(rng, 6, 'BCDFGLMNPRSTV')}{born}{rng.choice('FHL')}{number(rng, 3)}"
    return body + calc_check_digit(body)


def eleven(rng: random.Random) -> str:
    return until(
        lambda: f"{n}" if weighted(n := number(rng, 9, "123456789"), (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 else ""
    )


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


def insurance_britain(rng: random.Random) -> str:
    return rng.choice(["AB", "CE", "JK", "PR", "SX"]) + number(rng, 6) + rng.choice("ABCD")


def tax_india(rng: random.Random) -> str:
    first, last = letters(rng, 3, string.ascii_uppercase), letters(rng, 2, string.ascii_uppercase)
    return f"{first}P{last[0]}{number(rng, 4, '123456789')}{last[1]}"


def tax_america(rng: random.Random) -> str:
    return f"9{number(rng, 2)}-{rng.choice(['70', '75', '81', '92', '55'])}-{number(rng, 4)}"


def medicare(rng: random.Random) -> str:
    a, n = (letters(rng, 5, "ACDEFGHJKMNPQRTUVWXY"), number(rng, 4))
    value = f"{rng.choice('123456789')}{a[:2]}{n[0]}{a[2]}{n[1]}{n[2]}{a[3:]}{number(rng, 2)}"
    return grouped(value, (4, 3, 4), rng.choice(["", "-"]))


def insurance_canada(rng: random.Random) -> str:
    return grouped(luhn(number(rng, 8, "1245679")), (3, 3, 3), " ")


# How it is made, its label, and whether it can only be known by that.
NATIONAL: list[tuple[Callable[[random.Random], str], str, bool]] = [
    (tax_germany, "Steuer-ID", False), (pension_germany, "Rentenversicherungsnummer", False),
    (social_france, "numéro de sécurité sociale", False), (spain, "DNI", False), (italy, "codice fiscale", False),
    (eleven, "BSN", True), (health_britain, "NHS number", True),
    (insurance_britain, "National Insurance number", False), (aadhaar, "Aadhaar", False), (tax_india, "PAN", False),
    (brazil, "CPF", False), (poland, "PESEL", False), (sweden, "personnummer", False),
    (finland, "henkilötunnus", False), (switzerland, "AHV-Nummer", False), (belgium, "rijksregisternummer", False),
    (chile, "RUT", False), (singapore, "NRIC", False), (tax_america, "ITIN", False),
    (medicare, "Medicare number", False), (insurance_canada, "SIN", True),
]  # fmt: skip
