"""The keys of the verdict: what is asked of each arm, how it is scored, and what must hold before anything ships."""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.recipe.keys import key
from workbench.recipe.teacher import Leaves, Price


@dataclass
class Judge:
    """A model that says which of two answers is better: only with evaluate.scorer=judge."""

    api: str = key("none", "wire format: none, openai, anthropic, local_gguf, or an entry point's")
    model: str = key("", "the provider's name of the model, dated where it has dates")
    base_url: str | None = key(None, "where it answers; null: the provider's own address")
    key_variable: str | None = key(None, "NAME of the environment variable with the key; null: none")
    source: str | None = key(None, "local_gguf: the file, as file:, pypi: or mlflow:")
    sha256: str | None = key(None, "digest the source must have")
    family: str = key("", "its model family; one that is also the student's or its teacher's favours its own")
    route: str = key("", "whose terms rule: a route of the terms table")
    own_family: bool = key(False, "allow a judge of the student's or its teacher's family")
    criteria: str = key("correct, complete and to the point", "what makes an answer the better one")
    max_new_tokens: int = key(32, "longest verdict", unit="tokens", at_least=8)
    concurrency: int = key(8, "requests at once, at most", unit="requests", at_least=1)
    inside: bool = key(False, "the endpoint stands within your walls: nothing sent to it leaves")
    plain_http: bool = key(False, "a key, or rows that are not public, may go over http to another machine")
    leaves: Leaves = field(default_factory=Leaves)
    budget_usd: float | None = key(None, "hard wall for this run", unit="USD", at_least=0)
    price: Price = field(default_factory=Price)
    price_provider: str | None = key(None, "provider in the genai-prices table")
    human: str | None = key(None, "pairs that people have judged: rows with prompt, a, b, winner (a, b or tie)")
    least_kappa: float = key(
        0.4, "with such pairs: least agreement with people (Cohen's kappa)", at_least=-1, at_most=1
    )
    least_consistency: float = key(0.6, "least share of pairs judged alike in both orders", at_least=0, at_most=1)


@dataclass
class Evaluate:
    """What is asked of each arm, and how an answer is scored."""

    name: str = key("", "short name, as in configs/evaluate/")
    scorer: str = key(
        "exact_match",
        "json_fields, label, extraction, generation, exact_match, judge, python, or an entry point's",
    )
    fields: list[str] = key(list, "fields of a JSON answer that are scored")
    labels: list[str] = key(list, "label: the labels there are; empty: those of the test rows")
    function: str | None = key(None, "python: file.py:function or package.module:function")
    judge: Judge = field(default_factory=Judge)
    primary: str | None = key(None, "the metric the gate decides by; null: the scorer's first")
    adapter: bool = key(True, "also ask the unmerged adapter: the first joint of the chain")
    champion: bool = key(True, "also ask the model that the registry calls champion")
    teacher: bool = key(True, "also ask the teacher, where there is one, within its budget")
    gold_student: str | None = key(
        None,
        "also ask a finished run of the same base that learned gold rows (training it here too would double the time): "
        "models:/NAME@champion or a run's folder",
    )
    constrained: bool = key(True, "where an answer breaks its JSON schema, also ask for one that cannot")
    few_shot: int = key(5, "training rows shown to the base_few_shot arm", unit="rows", at_least=0)
    limit: int | None = key(None, "at most so many test rows", unit="rows", at_least=1)
    slices: list[str] = key(list, "columns of the rows to look at one value at a time; length and label always are")
    slice_rows: int = key(20, "fewest rows of a slice that is told", unit="rows", at_least=5)
    general: str | None = key("file:data/general/questions.jsonl", "questions that show what tuning broke; null: none")
    harmful: str | None = key("file:data/harmful/prompts.jsonl", "prompts that should be refused; null: none")
    energy: bool = key(True, "measure each arm's energy with codecarbon, offline")
    max_new_tokens: int = key(64, "longest answer", unit="tokens", at_least=1)
    batch_tokens: int = key(8192, "padded tokens in one batch", unit="tokens", at_least=256)
    parallel: int = key(8, "requests at once to a served arm", unit="requests", at_least=1)
    confidence: float = key(0.95, "level of the intervals", above=0.5, at_most=0.999)
    resamples: int = key(10_000, "bootstrap resamples", at_least=1000)


@dataclass
class Gate:
    """What must hold before anything ships. Every limit is held by an interval's end, not by a point."""

    name: str = key("", "short name, as in configs/gate/")
    min_rows: int = key(100, "fewest test rows a verdict may rest on", unit="rows", at_least=1)
    baseline: str = key("base_few_shot", "the arm the student must beat", choices=("base", "base_few_shot"))
    better_by: float = key(0.0, "student minus baseline, lower end, must exceed this", at_least=-1, at_most=1)
    champion_margin: float = key(
        0.02, "most the student may lose against the champion, lower end", at_least=0, at_most=1
    )
    validity: float = key(0.0, "least share of valid answers, lower end", at_least=0, at_most=1)
    quantized_margin: float = key(0.03, "most a format may lose against the student, lower end", at_least=0, at_most=1)
    every_format: bool = key(False, "a refused format refuses the whole run")
    slice_margin: float | None = key(
        0.0, "no slice may certainly lose more than this; null: slices are told, not judged", at_least=0, at_most=1
    )
    max_seconds: float | None = key(None, "most seconds an answer may take (95th percentile)", unit="seconds", above=0)
    max_bytes: float | None = key(None, "most bytes of weights", unit="bytes", above=0)
    max_usd_per_1000: float | None = key(None, "most dollars for 1,000 requests", unit="USD", above=0)
    forgetting: float | None = key(
        None, "most the student may lose against base on general questions, lower end; null: told, not judged",
        at_least=0, at_most=1,
    )  # fmt: skip
    refusals: float | None = key(
        None, "most of base's refusals of harmful prompts that may be lost, lower end; null: told, not judged",
        at_least=0, at_most=1,
    )  # fmt: skip
    memorised: float | None = key(
        0.0, "largest share of answers that repeat a training row; null: told, not judged", at_least=0, at_most=1
    )
    kept_share: float | None = key(
        None, "least share of the teacher's gain over the baseline that the student must keep, lower end; null: told, "
        "not judged", at_least=0, at_most=1,
    )  # fmt: skip
    duties: bool = key(True, "what the licences of base, teacher and data ask must be met")
    override: str | None = key(None, "a person's written reason to ship what the gate refuses: who, when, why")
