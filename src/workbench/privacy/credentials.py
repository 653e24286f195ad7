"""What secrets look like: keys with a maker's prefix, key blocks, tokens, and values that a label calls a password.

A bare run of random letters is not taken for a secret: hashes, ids and encoded data look the same.
"""

from __future__ import annotations

import re

from workbench.privacy.identifiers import WORD, Pattern

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
    r"pass(?:word|wd|phrase|wort|code)|(?<=[a-z][_\-])pass|pwd|kennwort|zugangsdaten|mot[ _]de[ _]passe|contraseñ[ao]|"
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
    r"(?i)\b(?:pin|cvv2?|cvc2?|cvn|otp|tan)(?:[ \-]?(?:code|number|nummer))?[\"']?\s?(?:is|ist|:|=|#)\s?[\"']?"
    r"(?P<value>\d{3,8})(?!\d)"
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
    Pattern("SECRET", TAG),
    Pattern("URL", WEBHOOK),
)
