"""What identifiers look like, and the checks that tell them from other numbers: pure functions on strings.

A pattern alone is never enough where a checksum exists. An address of a machine is told from a version or a section
by what stands before it.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator

from workbench.privacy.form import END, START, WORD, Find, Pattern

NEAR_BEFORE, NEAR_BEHIND = 48, 28  # how far a label may stand from its number, in characters

# In this order one kind wins where two would take the same characters.
KINDS = (
    "SECRET", "URL", "EMAIL", "IBAN", "WALLET", "SSN", "ID", "PASSPORT", "CARD", "ACCOUNT", "DEVICE", "IP", "BIRTHDATE",
    "PHONE",
)  # fmt: skip


def standard(module: str) -> Callable[[str], object]:
    """The check of python-stdnum's module of that name, imported when a first candidate turns up."""
    return lambda value: importlib.import_module(f"stdnum.{module}").is_valid(value)


def digits(text: str) -> str:
    """The digits of a text, the rest dropped."""
    return re.sub(r"\D", "", text)


CARD_GROUPS = ((4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4), (6, 13))


def is_card(value: str) -> bool:
    """Whether an issuer gives out such a number: its grouping, first digits, length, and Luhn's checksum."""
    number, groups = digits(value), tuple(len(group) for group in re.findall(r"\d+", value))
    one_digit, two, three, four = (int(number[:n]) for n in (1, 2, 3, 4))
    lengths: Collection[int] = ()
    if one_digit == 4:
        lengths = (13, 16, 19)  # Visa
    elif 51 <= two <= 55 or 2221 <= four <= 2720 or 2200 <= four <= 2204:
        lengths = (16,)  # Mastercard, Mir
    elif two in (34, 37) or four in (1800, 2131):
        lengths = (15,)  # American Express, JCB
    elif 300 <= three <= 305 or two in (36, 38, 39):
        lengths = (14, 16, 19)  # Diners Club
    elif two in (56, 57, 58) or four in (5018, 5020, 5038, 6304, 6390, 6759, 6761, 6762, 6763, 604):
        lengths = range(12, 20)  # Maestro
    elif two in (35, 60, 62, 64, 65, 81):
        lengths = (16, 17, 18, 19)  # JCB, Discover, UnionPay, RuPay
    elif two in (50, 61, 63, 66, 67, 68, 69):
        lengths = (16, 19)  # Maestro
    return len(number) in lengths and (len(groups) == 1 or groups in CARD_GROUPS) and is_luhn(number)


def is_luhn(number: str) -> bool:
    """Whether the last digit is Luhn's checksum of the others, and the digits are not all but the same."""
    return len(set(number)) > 1 and bool(standard("luhn")(number))


IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27"
        "GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22"
        "MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28"
        "TL23TN24TR26UA29VA22VG24XK20YE30",
    )
}
IBAN_BEGINS = re.compile(START + r"[A-Za-z]{2}\d{2}(?=[ \-.]?[A-Za-z0-9])")


def iban_at(text: str, start: int) -> int:
    """Where the IBAN that begins at `start` ends, or -1: its country's length and a remainder of 1 modulo 97."""
    wanted = IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    match = re.compile(rf"[A-Za-z0-9](?:[ \-.]?[A-Za-z0-9]){{{wanted - 1}}}(?![A-Za-z0-9])").match(text, start)
    if not wanted or not match:
        return -1
    compact = re.sub(r"[ \-.]", "", match[0]).upper()
    return match.end() if standard("iso7064.mod_97_10")(compact[4:] + compact[:4]) else -1


NOT_A_HOST = re.compile(
    r"(?:(?i:\b(?:v|ver|version|versions|release|releases|build|rev|revision|firmware|section|sections|sec|clause"
    r"|chapter|paragraph|para|oid|python|sdk|api|kernel|driver|update|upgraded? to|downgraded? to))[.:#]?\s?|§ ?|"
    r"[=<>~!^]=\s?|[A-Za-z0-9]-|[A-Za-z]v|[~^]\s?)\Z"
)
MACHINE = re.compile(
    r"(?<![0-9A-Za-z.])(?:\d{1,3}\.){3}\d{1,3}(?![0-9A-Za-z])|(?<![0-9A-Za-z])(?=[0-9A-Fa-f]|::)"
    r"(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4}|(?<=::))(?![0-9A-Za-z]|:[0-9A-Fa-f:])"
)
HOST_LABEL = re.compile(r"(?i)\b(?:ip|ipv4|ipv6|host|server|address|adresse|dirección|remote|client|peer)\b")


def is_ip(value: str, before: str, after: str) -> bool:
    """Whether an address of a machine stands here, and no version, section, slice or clock time.

    Loopback, unspecified and mask addresses are everyone's and therefore nobody's.
    """
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or value.startswith("255."):
        return False
    if after.startswith("/") and value.endswith((".0", "::")):
        return False  # a network: 192.168.0.0/16
    if address.version == 6:
        groups = [group for group in value.split(":") if group]
        return (len(groups) >= 4 or max(len(group) for group in groups) >= 3) and any(c.isdigit() for c in value)
    if re.match(r"\.?\d|\.?[A-Za-z]", after) or re.search(r"[\d.]\Z", before) or NOT_A_HOST.search(before):
        return False
    if re.search(r"[A-Za-z]/\Z", before) and value.endswith(".0"):
        return False  # Chrome/120.0.0.0
    small = all(int(octet) < 10 for octet in value.split("."))
    return not small or bool(HOST_LABEL.search(before))


def is_imei(value: str) -> bool:
    """Whether a device number has 15 digits and Luhn's checksum."""
    return len(digits(value)) == 15 and is_luhn(digits(value))


def exact(kind: str, regex: str, check: Callable[[str], object] = bool, label: str = "", flags: int = 0) -> Pattern:
    """A pattern that stands between START and END, and the label (a regular expression) it needs near, if any."""
    near = re.compile(rf"{WORD}(?i:{label})(?![a-z])") if label else None
    return Pattern(kind, re.compile(f"{START}(?:{regex}){END}", flags), check, near)


def behind(kind: str, label: str, regex: str, check: Callable[[str], object] = bool) -> Pattern:
    """A pattern that follows its label in the same sentence or field, with no digit between."""
    between = r"(?i:\b(?:no|nr|num)\.|[^\n0-9.;!?]){0,40}?"
    value = rf"(?<![A-Za-z0-9])(?P<value>{regex}){END}"
    return Pattern(kind, re.compile(rf"{WORD}(?i:{label})(?![a-z]){between}{value}"), check)


# What may stand between a label and its number where nothing else tells that it is one.
OF_A_LABEL = (
    r"(?i:[\s\"'_.:=#()\-]|(?:cards?|plates?|numbers?|num|nummer|numéro|número|nr|no|nº|code|id|is|ist|est|es|è|was|"
    r"lautet)"
    r"(?![a-z])){1,8}"
)


def right_behind(
    kind: str, label: str, regex: str, check: Callable[[str], object] = bool, any_case: bool = True
) -> Pattern:
    """A pattern that follows its label at once, with no other words than a label's own between."""
    word = rf"{WORD}(?i:{label})" if any_case else rf"{WORD}(?:{label})"
    return Pattern(kind, re.compile(rf"{word}(?![a-z]){OF_A_LABEL}(?<![A-Za-z0-9])(?P<value>{regex}){END}"), check)


E_MAIL = re.compile(
    r"(?<![\w.+\-])[\w.+\-]+(?:['’&][\w.+\-]+)?@"
    r"[^\W_](?:[\w\-]*[^\W_])?(?:\.[^\W_](?:[\w\-]*[^\W_])?)+"
)
# Written so that harvesters miss it: jane (at) example (dot) com.
E_MAIL_HIDDEN = (
    r"(?<![\w.+\-])[\w.+\-]+ ?[\[({<] ?(?i:at|@) ?[\])}>] ?[\w\-]+"
    r"(?:(?:\.| ?[\[({<] ?(?i:dot|\.) ?[\])}>] ?)[\w\-]+)+"
)
# Ends of names in local networks, which no public list holds.
MACHINE_SUFFIXES = ("local", "localdomain", "internal", "intranet", "lan", "corp", "home", "private", "test", "invalid")
BIC = r"[A-Z]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?"


def has_number(value: str) -> bool:
    """Whether a code holds a digit, or ends as the code of a bank's head office does: no word in capitals."""
    return any(c.isdigit() for c in value) or value.endswith("XXX")


ACCOUNT_LABEL = (
    r"(?:bank|checking|savings|current|giro)[ _-]?(?:account|acct|konto)|(?:account|acct|konto|compte|cuenta)[ _-]?"
    r"(?:numbers?|no\.?|nr\.?|num|nummer|#)|kontonummer|numéro de compte|número de cuenta"
)

CONTACT = (
    Pattern("EMAIL", re.compile(E_MAIL_HIDDEN)),
    Pattern("EMAIL", re.compile(r"(?<![\w.+%\-])[\w.+\-]+%40[\w\-]+(?:\.[\w\-]+)+")),
    exact("DEVICE", r"[0-9A-Fa-f]{2}([:\-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![:\-][0-9A-Fa-f])",
          lambda value: len(set(value)) > 3),
    exact("DEVICE", r"[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}", re.compile("[A-Fa-f]").search),
    exact("DEVICE", r"\d{2}[ \-]?\d{6}[ \-]?\d{6}[ \-]?\d", is_imei, label="imei"),
    exact("CARD", r"\d{12,19}|\d{4}([ .\-])\d{6}\1\d{4,5}|\d{6} \d{13}", is_card),
    exact("CARD", r"\d{4}([ .\-])\d{4}\1\d{4}\1\d{4}", is_card),
    exact("CARD", r"\d{4}([ .\-])\d{4}\1\d{4}\1\d{4}\1\d{3}", is_card),
    exact("ACCOUNT", r"\d{9}", standard("us.rtn"), label=r"routing|aba|rtn"),
    exact("ACCOUNT", r"\d{2}-\d{2}-\d{2}", label=r"sort[ _-]?code"),
    behind("ACCOUNT", ACCOUNT_LABEL, r"[A-Z]{0,4}\d(?:[ \-]?\d){5,16}"),
    right_behind("ACCOUNT", r"swift[ /]?(?:code|bic)|bic(?:[ /]?swift)?|swift", BIC, has_number),
    right_behind("ACCOUNT", r"(?:swift|bic)[ /](?:code|bic|swift)|bic", BIC),
    right_behind("ACCOUNT", r"blz|bankleitzahl", r"\d{3} ?\d{3} ?\d{2}"),
    right_behind("DEVICE", r"vin|fin|fahrgestell\w*|chassis", r"(?=[A-Z]*\d)[A-HJ-NPR-Z0-9]{17}", has_number),
    exact("WALLET", r"(?:bc1|[13])[a-zA-HJ-NP-Z0-9]{25,59}", standard("bitcoin")),
    exact("WALLET", r"0x[0-9a-fA-F]{40}"),
)  # fmt: skip


# Numbers that a state gives a person: one table of what each looks like, its checksum and the label it may need.
#
# Chosen are those that can be found well. A number of letters and digits, or with a date and two check digits inside,
# stands for itself; one that a tenth of all numbers of its length would pass must have its label near.


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


def is_plate(value: str) -> bool:
    """Whether what stands behind a plate's label can be one: four to nine letters and digits, of both."""
    signs = [c for c in value if c.isalnum()]
    return 4 <= len(signs) <= 9 and any(c.isdigit() for c in signs) and any(c.isalpha() for c in signs)


def is_document(value: str) -> bool:
    """Whether what stands behind an identity's label can be its number: at least five digits, capitals."""
    return sum(c.isdigit() for c in value) >= 5


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
VAT = (
    r"vat(?:[ -]?(?:reg(?:istration)?|id))?|u?st-?id(?:nr|-nr)?|umsatzsteuer\w*(?:-\w+)*|tva(?: intracommunautaire)?|"
    r"p\.? ?iva|partita iva|btw(?:-\w+)?|mwst(?:-\w+)*"
)
IDENTITY = (
    r"(?:id|identity|identification)[ _-]cards?|personalausweis\w*|ausweis(?:nummer|nr)|national[ _-]id|"
    r"identity (?:no|number)|id[ _-](?:number|no)|carte (?:nationale )?d['’]identité|carta d['’]identità|cédula|cnp|cni"
)
PERSON = (
    r"(?:employee|staff|personnel|patient|medical record|insurance|policy ?holder|member(?:ship)?)[ _-](?:id|no|"
    r"number)|mrn|"
    r"personalnummer|patientennummer|versichertennummer|mitgliedsnummer"
)
PLATE = (
    r"(?:licen[cs]e|number|registration)[ _-]plates?|(?:vehicle )?registration (?:number|no)|kennzeichen|"
    r"immatriculation|"
    r"plaque|matrícula|targa|kenteken"
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
    right_behind("ID", VAT, r"[A-Z]{2}[ ]?[A-Z]?\d[\dA-Z]{6,11}|\d{11}", is_document),
    right_behind("ID", r"steuer(?:nummer|nr)|st\.?-?nr|tax (?:number|no)", r"\d{2,3}/\d{3,4}/\d{4,5}"),
    right_behind("ID", r"EIN|FEIN|[Tt]ax(?:payer)? ?(?:id|ID|[Nn]umber)|TIN", r"\d{2}-\d{7}", any_case=False),
    right_behind("ID", IDENTITY, r"[A-Z0-9]{6,14}", is_document),
    right_behind("ID", PERSON, r"[A-Z]{0,4}-?\d{5,12}"),
    right_behind("ID", PLATE, r"[A-ZÄÖÜ0-9]{1,7}(?:[ \-·][A-Z0-9]{1,5}){0,2}", is_plate),
    behind("BIRTHDATE", BORN, DAY),
)  # fmt: skip


# Phone numbers, and what tells them from dates, order numbers, decimals and time stamps.
#
# Google's numbering plans (`phonenumbers`) are asked only once a form or a label speaks for a number.

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
    r"whatsapp|sms|ph|fon|mob|(?:my|our|his|her|contact|emergency|daytime) (?:number|nummer)|text(?:ed)? (?:me|him|"
    r"her|us)|dial(?:ed)?|ring|reach|hotline|handy|anruf\w*|rufnummer|rückruf|"
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
AREA_AND_NUMBER = re.compile(r"\(?0\d{1,5}\)? / [1-9]\d{2,}(?:[ \-]\d+){0,3}")  # one number, as Germans part it
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
    if AREA_AND_NUMBER.fullmatch(run):
        return [[(0, len(run))]]
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
