"""What a route was proven for: with another bundle, teacher, rendering or engine it proves nothing any more."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {
    "bundle": "the bundle's files",
    "teacher": "the teacher's model string",
    "template": "the prompt's rendering",
    "engine": "the engine's version",
    "asked": "how both are asked",
}


def voided(proven: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Why a route is void: a sentence for each part that is not what it was proven for; empty where it stands."""
    return [
        f"{NAMES[part]} changed: proven for {shown(proven.get(part))}, now {shown(now.get(part))}"
        for part in NAMES
        if proven.get(part) != now.get(part)
    ]


def shown(value: str | None) -> str:
    """A part in a sentence; a digest by its first digits."""
    text = value or "nothing"
    return text[:12] if len(text) == 64 and " " not in text else text
