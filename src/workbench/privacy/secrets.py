"""Secrets that this process holds, or that a text shows: what they look like, refused at the door, masked in output.

Regular expressions only: the door asks this before anything heavy is imported.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from workbench.privacy.form import WORD, Pattern
from workbench.urls import without_passwords

# What secrets look like: keys with a maker's prefix, key blocks, tokens, and values that a label calls a password.
#
# A bare run of random letters is not taken for a secret: hashes, ids and encoded data look the same.

KEYS = (
    r"sk-(?=[A-Za-z0-9_\-]*\d)[A-Za-z0-9_\-]{20,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek, LiteLLM
    r"(?:hf|api_org)_[A-Za-z0-9]{30,}",  # Hugging Face
    r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}",
    r"gl(?:pat|dt|ptt|rt|cbt|agent|soat|ft)-[A-Za-z0-9_\-]{20,}",  # GitLab
    r"(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA|ANPA|AIPA)[A-Z0-9]{16}",  # AWS
    r"(?:xox[a-z]|xapp)-[A-Za-z0-9\-]{10,}",  # Slack
    r"AIza[A-Za-z0-9_\-]{35}|GOCSPX-[A-Za-z0-9_\-]{20,}|ya29\.[A-Za-z0-9_\-]{20,}",  # Google
    r"[srp]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{20,}",  # Stripe
    r"npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{50,}|dckr_pat_[A-Za-z0-9_\-]{20,}",
    r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}|key-[0-9a-f]{32}|(?:AC|SK)[0-9a-f]{32}",  # SendGrid, Mailgun, Twilio
    r"(?:gsk|nvapi|xai|pplx|r8|fw|tgp_v1|csk|jina|voyage|pa|wandb_v1|ntn|lin_api|sbp|rnd|do[opr]_v1|shp(?:at|ca|pa|ss)|"
    r"glsa|hvs|hvb|dapi|sntrys|figd|PMAK|EAAC|sq0[a-z]{3}|NRAK|rk|tskey|ops|shippo_live|pscale_tkn|doppler)"  # others
    r"[_\-.]?(?=[A-Za-z0-9_\-]*\d)(?=[A-Za-z0-9_\-]*[A-Za-z])[A-Za-z0-9_\-]{30,}",
    r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?",  # JSON web token
    r"\d{8,10}:[A-Za-z0-9_\-]{35}",  # Telegram
    r"AGE-SECRET-KEY-1[A-Z0-9]{50,}",
)
PASSWORD = (
    r"pass(?:word|wd|phrase|wort|code)|(?<=[a-z][_\-])pass|(?<![a-z])(?:pw|pass)(?=[\s\"'`]*[:=])|pwd|kennwort|"
    r"zugangsdaten|mot[ _]de[ _]passe|contraseñ[ao]|"
    r"wachtwoord|parola|senha"
)
TOKEN = (
    r"(?:(?:api|app|access|account|secret|private|encryption|signing|master|subscription|client|consumer|auth|session|"
    r"shared|storage|service|license|deploy)[ _\-]?)+(?:key|token|secret)(?:[ _\-]?id)?|secret|token|credentials?|"
    r"api[ _\-]?schlüssel|(?:j|php|asp)?sess(?:ion)?[ _\-]?id|clé[ _]api|clave[ _](?:api|de[ _]acceso)|key"
)
# In quotes, or up to a blank; of `Password=…;Database=…` only up to the next key.
VALUE = (
    r"(?:(?P<quote>[\"'`])(?P<quoted>[^\"'`\n]{4,200})(?P=quote)|"
    r"(?P<bare>(?:(?![;,](?:\s|$)|[;,&][\w ]{1,24}[=:])[^\s\"'`]){4,200}))"
)
SIGN = (
    r"[ \t]*(?::[ \t]*(?:str|string|bytes|optional\[str\]))?[ \t]*(?::=|=>|->|={1,2}|:|>)(?:\*\*)?[ \t]*|"
    r"(?:[ \t]+[a-zà-ž]{1,12}){0,4}?[ \t]+(?:is|was|ist|lautet|est|es|war|è):?[ \t]+|[ \t]+(?=[\"'`])"
)
ASSIGNED = re.compile(
    rf"(?P<label>(?P<password>(?i:{PASSWORD}))|{WORD}(?i:{TOKEN}))(?![a-z])(?i:[_\-]?(?:value|string|prod|dev|\d))?"
    rf"(?i: ?[\"'`]?(?:\*\*)?(?P<to>{SIGN})){VALUE}"
)
OPTION = re.compile(r"(?i)(?<!\S)--?(?:[a-z\-]*(?:password|passwd|pass|token|secret|api-key|apikey))[ =]" + VALUE)
HEADER = re.compile(
    r"(?i)\b(?:bearer|basic|digest|apikey|token)[ \t]+(?P<value>(?=[\w.~+/=\-]*\d)[\w.~+/\-]{16,}={0,2})"
)
PIN = re.compile(
    r"(?:(?i:\b(?:(?:pin|cvv2?|cvc2?|cvn|otp|tan)(?:[ \-]?(?:code|number|nummer))?|(?:one[ \-]time|security|"
    r"verification|auth(?:entication)?|2fa|mfa)[ \-](?:code|pin|password)|(?:karten)?prüf(?:ziffer|"
    r"nummer)(?: der karte)?|"
    r"(?:sicherheits|bestätigungs|verifizierungs)code)[\"']?\s?(?:is|ist|:|=|#)\s?[\"']?)|"
    r"\b(?:CVV2?|CVC2?|CVN) (?=\d{3,4}\b)|\bPIN (?=\d{4,8}\b))(?P<value>\d{3,8})(?!\d)"
)
# `user/pw: bob / x7…`, and the password that stands right behind a program's -p.
PAIR = re.compile(
    r"(?i)\b(?:user(?:name)?|login|benutzer)\s?/\s?(?:pw|pass(?:word|wort)?|kennwort)\s?[:=]\s?[^\s/]{1,60}\s?/\s?"
    r"(?P<value>[^\s/]{4,60})"
)
BEHIND_P = re.compile(
    r"\b(?:mysql\w*|mariadb\S*|sshpass)\b[^\n|;&]{0,120}?\s-p(?P<value>(?=\S*\d)(?=\S*[A-Za-z])[^\s'\"]{4,60})"
)
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
# Not a secret's value: a word about one, a type, a stand-in, a variable, a call, an address.
NOTHING = re.compile(
    r"(?i)(?:none|null|nil|true|false|required|optional|string|str|bytes|int|bool|text|hidden|masked|redacted|removed|"
    r"empty|unset|undefined|default|changeme|missing|invalid|incorrect|wrong|expired|disabled|enabled|protected|here|"
    r"encrypted|todo|tbd|n/a|password|passwort|passwd|secret|token|username|user|example|forgotten|lost|reset|correct|"
    r"unknown|siehe|voir|see|your[\W_].*|<[\w \-|.:]+>?|\$[({].*|(?-i:\$[A-Z_]+)|\{+[\w .]*\}*|%\w+%|%\(\w+\)s|%[sdr]|"
    r"[*x.•_\-#?]+|\[.*\]|[a-z_][\w.]*\((?:.*[()])?|[a-z_]+_(?:password|passwd|secret|token|key)|"
    r"(?:password|passwd)_[a-z]+|[a-z]+://.*|=.*|"
    r"(?:os|process|self|config|settings|args|env|this|request|options|cfg|params|data|kwargs)[.\[].*)"
)


def is_assigned(match: re.Match[str]) -> bool:
    """Whether what a label names is a secret's value, not a word about one, a variable or a stand-in.

    A word of letters is taken for a password only in quotes, behind `=`, or alone on the rest of its line; behind
    other labels (a token, a key) letters and digits must be mixed.
    """
    value, sign = match["quoted"] or bare(match), match["to"] if "to" in match.groupdict() else "="
    if (
        len(value) < 4
        or NOTHING.fullmatch((match["quoted"] or match["bare"].rstrip(".,;:")).strip())
        or not re.search(r"[A-Za-z0-9]", value)
    ):
        return False
    mixed = bool(re.search(r"\d", value) and re.search(r"[^\W\d_]", value))
    if not match.groupdict().get("password") and match.re is ASSIGNED:
        return (
            len(value) >= (16 if match["label"].lower() == "key" else 8) and mixed and not re.search(r"[\s(\[]", value)
        )
    if mixed or re.search(r"[A-Za-z0-9][^\w\s.,;:\-/'][A-Za-z0-9]", value):
        return True
    if match.groupdict().get("label", "").lower() in ("pw", "pass"):  # a word of letters is passed, or is a heading
        return False
    ends = match.end() == len(match.string) or match.string[match.end()] == "\n"
    return bool(match["quoted"]) or "=" in sign or (":" in sign and (ends or value.isdigit()))


def bare(match: re.Match[str]) -> str:
    """An unquoted value without the sentence's punctuation; a bracket stays unless it closes one opened before."""
    value, before = match["bare"].rstrip(".,;:"), match.string[max(0, match.start() - 80) : match.start("bare")]
    while value and value[-1] in ")]}>":
        opening = "([{<"[")]}>".index(value[-1])]
        if opening in value or opening not in before:
            break
        value = value[:-1].rstrip(".,;:")
    return value


def value_span(match: re.Match[str]) -> tuple[int, int]:
    """Where the value of a labelled secret stands, without quotes and the sentence's punctuation."""
    if match["quoted"]:
        return match.start("quoted"), match.start("quoted") + len(match["quoted"].rstrip())
    return match.start("bare"), match.start("bare") + len(bare(match))


ADDRESS = re.compile(r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s\"'`<>\\]+")
PERSONAL_QUERY = re.compile(
    r"(?i)[?&#;](?:(?:[\w.\-]*(?:token|secret|passw(?:or)?d|pwd|signature|credential|api_?key|access_?key|session_?id)|"
    r"sig|sid|key|auth)=(?=[^&\s]*\d)[^&\s]{8,}|"
    r"(?:e-?mail|mail|phone|tel|mobile|ssn|dob|(?:first|last|full|sur)_?name|user_?name|login)=[^&\s]{2,})"
)
USER_AND_PASSWORD = re.compile(r"://[^/?#\s@:]*:[^/\s@]+@|://[^/?#\s@:]{16,}@")


def is_telling(address: str) -> bool:
    """Whether an address holds a password, a key or a person's data; any other is public knowledge and stays."""
    return bool(USER_AND_PASSWORD.search(address) or PERSONAL_QUERY.search(address))


TAG = re.compile(r"(?i)<(?:[\w:.\-]*(?:password|passwd|pwd|secret|token|apikey))>(?P<value>[^<\n]{4,200})</")
WEBHOOK = re.compile(
    r"https://hooks\.slack\.com/services/[\w/]+|https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/[\w/\-]+"
)

CREDENTIALS = (
    Pattern("SECRET", PRIVATE_KEY),
    Pattern("SECRET", re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(KEYS)})")),
    Pattern("SECRET", HEADER),
    Pattern("SECRET", PIN),
    Pattern("SECRET", PAIR),
    Pattern("SECRET", BEHIND_P),
    Pattern("SECRET", TAG),
    Pattern("URL", WEBHOOK),
)

MASK = "…"
# A variable whose name says that its value opens something. TOKENIZERS_… and a list of names (…_KEYS) are none.
SECRET_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:api_?key|key|token|secret|pass|pat|pwd|auth|credentials?)(?:_|$)|"
    r"(?:password|passwd|passphrase|apikey|accesskey|secretkey|secret|token|sshpass)(?:_|$)"  # PGPASSWORD, SSHPASS
)
# A key of a recipe, or a word on the command line, that is named after a secret.
SECRET_KEY = re.compile(
    r"(^|[._-])(token|secret|password|passwd|api_?key|access_?key|private_?key|credentials?)$", re.IGNORECASE
)
LEAST_CHARACTERS, LEAST_OF_A_KEY = 8, 6
ALLOWED_KEYS = "WORKBENCH_ALLOWED_KEYS"  # the user's word on which variable's key may go where
# A path to a key file, a yes or a plain small word is no secret, and would be masked in every sentence.
PLAIN_VALUE = re.compile(r"(?:~|\.{1,2}/).*|[a-z]{,15}|[A-Z]{,15}|\d{,11}|\d*[.,:][\d.,:]*", re.DOTALL)
LEAST_OF_A_LINE = 16  # characters of one line of a value that has several: a private key
LEAST_ENCODED = 10  # characters of a base64 form that are looked for
KEY_PATTERN = re.compile(rf"(?<![A-Za-z0-9])(?:sk-[\w-]{{16,}}|hf_\w{{20,}}|{'|'.join(KEYS)})")
# A number behind the word PIN is a row's secret; in an instruction it is more likely an example.
AT_THE_DOOR = tuple(each.regex for each in CREDENTIALS if each.regex is not PIN)
READ: set[str] = set()  # values that were read as keys, whatever their variables are called


def remember(value: str) -> None:
    """Have a value masked from now on: it was read as a key."""
    if len(value) >= LEAST_OF_A_KEY:
        READ.add(value)


def held_secrets() -> Mapping[str, str]:
    """The secrets that the environment holds, each with the name of its variable."""
    return secrets_among(tuple(os.environ.items()))


@functools.lru_cache(maxsize=4)
def secrets_among(variables: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """The secrets among variables (name, value): looked for once for all the texts that are held against them."""
    held = {}
    for name, value in variables:
        if SECRET_VARIABLE.search(name) and is_secret_value(value.strip()):
            held[value.strip()] = name
        elif "://" in value and "@" in value and (password := password_of(value)):
            held[password] = name
    return held


def is_allowed(name: str, host: str) -> bool:
    """Whether the user's environment lets this variable's key go to this host: `NAME@host`, or `NAME` for any."""
    words = re.split(r"[\s,]+", os.environ.get(ALLOWED_KEYS, ""))
    return name in words or f"{name}@{host}" in words


def is_secret_value(value: str) -> bool:
    """Whether a value is long and odd enough that it opens something, and that masking it spoils no sentence."""
    return len(value) >= LEAST_CHARACTERS and not PLAIN_VALUE.fullmatch(value) and not is_path(value)


@functools.lru_cache(maxsize=256)
def is_path(value: str) -> bool:
    """Whether a value leads somewhere here: a key in base64 may begin with `/` too."""
    return value.startswith("/") and os.path.lexists("/" + value.split("/")[1]) and not value.startswith("//")


def password_of(url: str) -> str:
    """The password inside a URL; '' where there is none that can be told from other text."""
    try:
        password = unquote(urlsplit(url.strip()).password or "")
    except ValueError:
        return ""
    return password if is_secret_value(password) else ""


def credential_in(text: str, held: Mapping[str, str] | None = None) -> str:
    """What secret a text shows, in words that do not repeat it; '' where it shows none.

    `held` is `held_secrets()`, for whoever looks at many texts: reading the environment takes longer than the look.
    """
    for value, name in (held_secrets() if held is None else held).items():
        if value in text:
            return f"the value of the environment variable {name}"
    return credential_by_form(text)


@functools.lru_cache(maxsize=4096)
def credential_by_form(text: str) -> str:
    """What `credential_in` sees by a text's form alone; a recipe's keys are the same each time it is read."""
    if KEY_PATTERN.search(text) or any(regex.search(text) for regex in AT_THE_DOOR):
        return "a key or token"
    for regex in (ASSIGNED, OPTION):
        if any(is_assigned(match) for match in regex.finditer(text)):
            return "a password or key with its name before it"
    if "://" in text and without_passwords(text) != text:
        return "a password or token inside a URL"
    return ""


def shows_key(text: str) -> bool:
    """Whether a text shows by its form alone that it holds a key, or a URL with a password."""
    return bool(KEY_PATTERN.search(text)) or ("://" in text and without_passwords(text) != text)


# All of C0 and C1 but tab and line feed, and the marks that turn the reading order round.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def masked(text: str) -> str:
    """A text for a screen, a file or an error, without any secret that is held or that shows itself by its form.

    Nor has it signs that a terminal obeys: what a server or a file says must not move the cursor or write a title.
    """
    return shown(text, held_forms())


def shown(text: str, held: re.Pattern[str] | None) -> str:
    """`masked`, with the forms of what is held, which many texts share."""
    text = CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), without(text, held))
    text = KEY_PATTERN.sub(MASK, text)
    return without_passwords(text) if "://" in text else text


def without_held(text: str) -> str:
    """A text without the secrets that this process holds: plain, URL-encoded, in base64 or in hexadecimal digits.

    For what must not be changed otherwise: an answer may be about keys.
    """
    return without(text, held_forms())


def without(text: str, held: re.Pattern[str] | None) -> str:
    """A text without those forms."""
    return held.sub(MASK, text) if held else text


def held_forms() -> re.Pattern[str] | None:
    """Every form of the secrets that this process holds now; None where it holds none."""
    values = tuple(sorted({*held_secrets(), *READ}))
    return forms_of(values) if values else None


@functools.lru_cache(maxsize=8)
def forms_of(values: tuple[str, ...]) -> re.Pattern[str]:
    """Every form of the values, the longest first."""
    forms = {form for value in values for form in encoded(value)}
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))


def encoded(value: str) -> Iterator[str]:
    """A value as it is and as it may be carried. In base64 it looks different at each of three places in a text."""
    yield from (value, quote(value), quote(value, safe=""), quote_plus(value), html.escape(value))
    yield from (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])
    yield from (value.encode().hex(), value.encode().hex().upper())
    lines = value.splitlines()
    yield from (line for line in lines if len(lines) > 1 and len(line) >= LEAST_OF_A_LINE and "-----" not in line)
    for before, cut in ((0, 0), (1, 2), (2, 3)):
        raw = bytes(before) + value.encode()
        whole = base64.b64encode(raw).decode()[cut : len(raw) * 8 // 6]
        if len(whole) >= LEAST_ENCODED:
            yield from (whole, whole.replace("+", "-").replace("/", "_"))


def masked_values(node: Any) -> Any:
    """Nested JSON with `masked` texts, keys included."""
    return changed(node, functools.partial(shown, held=held_forms()))


def values_without_held(node: Any) -> Any:
    """Nested JSON with `without_held` texts, keys included."""
    return changed(node, functools.partial(without, held=held_forms()))


def changed(node: Any, change: Any) -> Any:
    """Nested mappings and lists with each text put through a function."""
    if isinstance(node, str):
        return change(node)
    if isinstance(node, dict):
        return {changed(key, change): changed(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [changed(value, change) for value in node]
    return node
