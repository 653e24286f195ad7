"""Secrets that this process holds, or that a text shows: refused in what a user writes, masked in what we write.

Regular expressions only: the door asks this before anything heavy is imported.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from workbench.privacy import credentials
from workbench.urls import without_passwords

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
KEY_PATTERN = re.compile(rf"(?<![A-Za-z0-9])(?:sk-[\w-]{{16,}}|hf_\w{{20,}}|{'|'.join(credentials.KEYS)})")
# A number behind the word PIN is a row's secret; in an instruction it is more likely an example.
AT_THE_DOOR = tuple(each.regex for each in credentials.CREDENTIALS if each.regex is not credentials.PIN)
READ: set[str] = set()  # values that were read as keys, whatever their variables are called


def remember(value: str) -> None:
    """Have a value masked from now on: it was read as a key."""
    if len(value) >= LEAST_OF_A_KEY:
        READ.add(value)


def held_secrets() -> dict[str, str]:
    """The secrets that the environment holds, each with the name of its variable."""
    held = {}
    for name, value in os.environ.items():
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


def credential_in(text: str) -> str:
    """What secret a text shows, in words that do not repeat it; '' where it shows none."""
    for value, name in held_secrets().items():
        if value in text:
            return f"the value of the environment variable {name}"
    if KEY_PATTERN.search(text) or any(regex.search(text) for regex in AT_THE_DOOR):
        return "a key or token"
    for regex in (credentials.ASSIGNED, credentials.OPTION):
        if any(credentials.is_assigned(match) for match in regex.finditer(text)):
            return "a password or key with its name before it"
    if "://" in text and without_passwords(text) != text:
        return "a password or token inside a URL"
    return ""


def shows_key(text: str) -> bool:
    """Whether a text shows by its form alone that it holds a key, or a URL with a password."""
    return bool(KEY_PATTERN.search(text)) or ("://" in text and without_passwords(text) != text)


def masked(text: str) -> str:
    """A text for a screen, a file or an error, without any secret that is held or that shows itself by its form."""
    text = without_held(text)
    text = KEY_PATTERN.sub(MASK, text)
    return without_passwords(text) if "://" in text else text


def without_held(text: str) -> str:
    """A text without the secrets that this process holds: plain, URL-encoded, in base64 or in hexadecimal digits.

    For what must not be changed otherwise: an answer may be about keys.
    """
    values = tuple(sorted({*held_secrets(), *READ}))
    return forms_of(values).sub(MASK, text) if values else text


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
    return changed(node, masked)


def values_without_held(node: Any) -> Any:
    """Nested JSON with `without_held` texts, keys included."""
    return changed(node, without_held)


def changed(node: Any, change: Any) -> Any:
    """Nested mappings and lists with each text put through a function."""
    if isinstance(node, str):
        return change(node)
    if isinstance(node, dict):
        return {changed(key, change): changed(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [changed(value, change) for value in node]
    return node
