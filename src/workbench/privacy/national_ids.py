"""Numbers that a state gives a person: one table of what each looks like, its checksum and the label it may need.

Chosen are those that can be found well. A number of letters and digits, or with a date and two check digits inside,
stands for itself; one that a tenth of all numbers of its length would pass must have its label near.
"""

from __future__ import annotations

import re

from workbench.privacy.identifiers import Pattern, behind, exact, standard


def is_nino(value: str) -> bool:
    """Whether a British national insurance number may begin like this."""
    return value[:2].upper() not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def is_pension_number(value: str) -> bool:
    """Whether month and last digit of a German pension insurance number are right (VKVV § 4)."""
    compact = value.replace(" ", "").upper()
    spelled = compact[:8] + f"{ord(compact[8]) - 64:02d}" + compact[9:11]
    products = [int(digit) * weight for digit, weight in zip(spelled, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1))]
    return sum(sum(divmod(product, 10)) for product in products) % 10 == int(compact[11]) and compact[4:6] <= "12"


def is_nric(value: str) -> bool:
    """Whether the last letter of a Singapore NRIC or FIN is right."""
    value = value.upper()
    total = sum(int(d) * w for d, w in zip(value[1:8], (2, 7, 6, 5, 4, 3, 2))) + (4 if value[0] in "TG" else 0)
    return ("JZIHGFEDCBA" if value[0] in "ST" else "XWUTRQPNMLK")[total % 11] == value[8]


def is_passport(value: str) -> bool:
    """Whether what stands behind a passport's label can be its number: capitals and at least three digits."""
    return sum(c.isdigit() for c in value) >= 3


def is_permit(value: str) -> bool:
    """Whether what stands behind a driving licence's label can be its number: at least four digits."""
    return sum(c.isdigit() for c in value) >= 4


def is_machine_zone(value: str) -> bool:
    """Whether lines of a document are the machine-readable zone of a passport or identity card."""
    return "<<" in value


SOCIAL = r"ssn|social[ _-]?sec(?:urity)?(?:[ _-]?(?:number|no|num|nr))?|ss ?#|soc\.? sec\.?"
TAX = r"tax(?:payer)?|itin|tin|sin|nif|tfn|social insurance|medicare|contribuinte|contribuable"
MBI = "AC-HJKMNP-RT-Y"
DAY = (
    r"\d{1,2}[./\-]\d{1,2}[./\-](?:\d{4}|\d{2})|\d{4}[\-/.]\d{1,2}[\-/.]\d{1,2}|"
    r"\d{1,2}(?:st|nd|rd|th|er|\.)?(?: of| de)? [A-Za-zÀ-ž]{3,10}\.?,?(?: de)? \d{4}|"
    r"[A-Z][a-z]{2,8}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4}"
)
PASSPORT = r"passports?|reisepass\w*|passeport|pasaporte|passaporto|paspoort"
PERMIT = r"driv(?:er|ing)['’]?s?[ _]licen[cs]e|führerschein\w*|permis[ _]de[ _]conduire|permiso[ _]de[ _]conducir"
BORN = (
    r"d\.?o\.?b\.?|date[ _]?of[ _]?birth|birth[ _-]?da(?:te|y)|born|geboren|geb\.|geburtsdatum|née? le|née?|"
    r"date[ _]de[ _]naissance|nacid[oa]|fecha[ _]de[ _]nacimiento|nat[oa] il|data di nascita|geboortedatum"
)

NATIONAL = (
    # United States: area 000, 666 and 9xx, group 00 and serial 0000 were never given out.
    exact("SSN", r"(?!000|666|9)\d{3}([ \-])(?!00)\d\d\1(?!0000)\d{4}"),
    exact("SSN", r"(?!000|666|9)\d{3}[ .\-]?(?!00)\d\d[ .\-]?(?!0000)\d{4}", label=SOCIAL),
    exact("ID", r"9\d\d-(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])-\d{4}"),
    exact("ID", rf"[1-9][{MBI}][{MBI}0-9]\d-?[{MBI}][{MBI}0-9]\d-?[{MBI}]{{2}}\d\d"),
    # By country. What has no label here is unlikely enough by chance.
    exact("ID", r"[1-9]\d ?\d{3} ?\d{3} ?\d{3}|[1-9]\d{2} ?\d{3} ?\d{3} ?\d{2}", standard("de.idnr")),
    exact("ID", r"\d{2} ?[0-9]\d[01]\d{3} ?[A-Za-z] ?\d{3}", is_pension_number),
    exact("ID", r"[12][ .\-]?\d\d[ .\-]?\d\d[ .\-]?\d[0-9AaBb][ .\-]?\d{3}[ .\-]?\d{3}[ .\-]?\d\d", standard("fr.nir")),
    exact("ID", r"\d{8}-?[A-Za-z]|\d{8} [A-Z]|\d\d\.\d{3}\.\d{3}[ \-]?[A-Za-z]", standard("es.dni")),
    exact("ID", r"[XYZxyz][ \-.]?\d{7}[ \-.]?[A-Za-z]|[XYZ][ \-.]?\d\.\d{3}\.\d{3}[ \-.]?[A-Z]", standard("es.nie")),
    exact("ID", r"[A-Z]{3} ?[A-Z]{3} ?[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2} ?[A-Z][\dL-NP-V]{3} ?[A-Z]",
          standard("it.codicefiscale"), flags=re.IGNORECASE | re.ASCII),
    exact("ID", r"(?![DFIQUV])[A-Za-z](?![DFIQUVO])[A-Za-z] ?\d\d ?\d\d ?\d\d ?[A-Da-d]", is_nino),
    exact("ID", r"\d{3}[ \-]?\d{3}[ \-]?\d{4}", standard("gb.nhs"), label="nhs|health service"),
    exact("ID", r"\d{4}[.\- ]?\d\d[.\- ]?\d{3}|\d{3}[.\- ]\d{3}[.\- ]\d{3}", standard("nl.bsn"),
          label="bsn|burgerservicenummer|sofi|citizen service"),
    exact("ID", r"\d\d[. ]?\d\d[. ]?\d\d[\- ]?\d{3}[. ]?\d\d", standard("be.nn")),
    exact("ID", r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d\d", standard("ch.ssn")),
    exact("ID", r"\d{4} ?\d{6}", standard("at.vnr"), label="svnr|sv-nummer|(?:sozial)?versicherungsnummer"),
    exact("ID", r"[2-9]\d{3}([ \-])\d{4}\1\d{4}", standard("in_.aadhaar")),
    exact("ID", r"[2-9]\d{11}", standard("in_.aadhaar"), label="aadhaar|aadhar|uidai|uid"),
    exact("ID", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", standard("in_.pan")),
    exact("ID", r"\d{11}", standard("pl.pesel")),
    exact("ID", r"\d{3}[. ]?\d{3}[. ]?\d{3}[\- ]?\d\d", standard("br.cpf")),
    exact("ID", r"(?:19|20)?\d{6}[\-+]\d{4}|(?:19|20)\d{10}", standard("se.personnummer")),
    exact("ID", r"\d{6}[+\-A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", standard("fi.hetu")),
    exact("ID", r"\d{6}[ \-]?\d{5}", standard("no.fodselsnummer")),
    exact("ID", r"\d{6}-?\d{4}", standard("dk.cpr"), label="cpr|cpr-nummer|personnummer"),
    exact("ID", r"\d{6}/\d{3,4}", standard("cz.rc")),
    exact("ID", r"[1-9]\d{12}", standard("ro.cnp")),
    exact("ID", r"\d{9}", standard("pt.nif"), label=TAX),
    exact("ID", r"\d{7}[A-Wa-w][A-IWa-iw]?", standard("ie.pps"), label="pps|ppsn|personal public service"),
    exact("ID", r"\d{11}", standard("hr.oib"), label="oib"),
    exact("ID", r"\d{11}", standard("gr.amka"), label="amka|αμκα"),
    exact("ID", r"[1-9]\d{10}", standard("tr.tckimlik")),
    exact("ID", r"\d{3}-\d{3}-\d{3}|\d{3} ?\d{3} ?\d{3}", standard("ca.sin"), label=TAX),
    exact("ID", r"\d{3} ?\d{3} ?\d{2,3}", standard("au.tfn"), label=TAX),
    exact("ID", r"\d{6}-[0-9]\d{6}", standard("kr.rrn")),
    exact("ID", r"[1-9]\d{16}[0-9Xx]", standard("cn.ric")),
    exact("ID", r"[STFGstfg]\d{7}[A-Za-z]", is_nric),
    exact("ID", r"\d{6} ?\d{4} ?\d{3}", standard("za.idnr")),
    exact("ID", r"[A-Z]{4}\d{6}[A-Z]{6}[0-9A-Z]\d", standard("mx.curp"), flags=re.IGNORECASE | re.ASCII),
    exact("ID", r"\d{1,2}\.\d{3}\.\d{3}-[\dKk]|\d{7,8}-[\dKk]", standard("cl.rut")),
    exact("ID", r"\d{8,9}", standard("il.idnr"), label="teudat zehut|israeli id"),
    # Documents and dates: found by their label only, for no checksum tells them from other numbers.
    behind("PASSPORT", PASSPORT, "[A-Z0-9]{6,9}", is_passport),
    Pattern("PASSPORT", re.compile(r"(?<![A-Z0-9<])[A-Z0-9<]{30,44}(?:\r?\n[A-Z0-9<]{30,44}){1,2}(?![A-Z0-9<])"),
            is_machine_zone),
    behind("ID", PERMIT, r"[A-Z0-9](?:[ \-]?[A-Z0-9]){4,17}", is_permit),
    behind("BIRTHDATE", BORN, DAY),
)  # fmt: skip
