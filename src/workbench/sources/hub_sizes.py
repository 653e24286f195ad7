"""What a hub says of a model that is not here: its config.json, how many parameters it has, its licence.

Two small requests, which `plan` makes for a model without sizes of its own; no weights are fetched.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from workbench.errors import RequestError
from workbench.files import temporary_folder
from workbench.sources.bases import read_config, refuse_other_kinds, refuse_quantized
from workbench.sources.hub_download import ask
from workbench.sources.places import split_scheme
from workbench.sources.resolve import read_hf
from workbench.sources.text_part import text_class, text_config

LARGEST = 10**15  # no count that a hub gives may be larger


@dataclass(frozen=True)
class HubModel:
    """A model of a hub, as far as it is known without its weights; 0 and "" where the hub does not say."""

    commit: str
    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    context_length: int
    licence: str
    gated: bool

    def sizes(self) -> dict[str, Any]:
        """The recipe's keys of `model` that `plan` counts with."""
        names = ("parameters", "layers", "hidden_size", "intermediate_size", "vocabulary", "context_length")
        return {name: getattr(self, name) for name in names}


def hub_model(source: str) -> HubModel | str:
    """What the hub says of an `hf:` source, or why it says nothing: no such answer ends a plan.

    Raises RequestError where its config.json is that of a model which cannot be tuned.
    """
    scheme, rest = split_scheme(source)
    if scheme != "hf" or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "" if scheme != "hf" else "HF_HUB_OFFLINE is set"
    wanted = read_hf(rest)
    with temporary_folder() as temporary:
        facts, name, _ = ask(wanted.repo, wanted.revision, temporary)
        if name == "GatedRepoError":
            return "the hub asks for your consent: accept the licence on its page, then set HF_TOKEN"
        if name in ("RepositoryNotFoundError", "RevisionNotFoundError"):
            raise RequestError("the hub has no such repository or revision", where=source)
        if name:
            return f"the hub could not be asked ({name})"
        config = read_config(temporary, source)
        refuse_quantized(temporary, config, {}, source)
    section = text_config(config) if text_class(config) else config
    refuse_other_kinds(section, source)
    section = section["text_config"] if isinstance(section.get("text_config"), dict) else section
    return HubModel(
        commit=plain(facts.get("sha")),
        parameters=count(facts.get("parameters")),
        layers=count(section.get("num_hidden_layers")),
        hidden_size=count(section.get("hidden_size")),
        intermediate_size=count(section.get("intermediate_size")),
        vocabulary=count(section.get("vocab_size")),
        context_length=count(section.get("max_position_embeddings")),
        licence=plain(facts.get("licence")),
        gated=bool(facts.get("gated")),
    )


def count(value: object) -> int:
    """A count of a hub's answer, 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST else 0


def plain(value: object) -> str:
    """A short word of a card, without signs that a terminal would act upon."""
    return re.sub(r"[^\w.+ -]", "", value)[:60] if isinstance(value, str) else ""
