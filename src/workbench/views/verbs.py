"""The verbs: what each does, its own words, two examples. Help, completion, the README and the door read this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """A `key=value` of a verb that is no key of a recipe: its default, whose type it has, and its meaning."""

    default: str | int | bool
    meaning: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verb:
    """One verb. `recipe`: it works on a recipe; `words`: its own keys; `first`: the key of a word without `=`.

    `sections` are the recipe's sections that matter most to it, `refused` what exit code 3 means where it has one.
    """

    does: str
    examples: tuple[str, ...]
    recipe: bool = True
    words: Mapping[str, Word] = field(default_factory=dict)
    first: str = ""
    sections: tuple[str, ...] = ()
    refused: str = ""


DEBUG = Word(False, "show tracebacks")
OUTPUT = Word("text", "json: one JSON object on standard output", ("text", "json"))
KEY = Word("", "the public key that a signature is held against; empty: your own")
EXPERIMENTS = Word("experiments", "folder of the runs and the embedded MLflow store")
URI = Word("", "MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else the store in the experiments folder")
ENGINE = Word("auto", "which engine answers: auto, transformers, llamacpp, vllm, sglang, ollama")
STORED = {"experiments": EXPERIMENTS, "uri": URI}
PRINTED = {"output": OUTPUT, "debug": DEBUG}
LISTED = ("recipes", "models", "teachers", "formats", "runs")

VERBS: dict[str, Verb] = {
    "train": Verb(
        "the recipe to its end, from the first stage that is not done",
        ("train legal_lora", "train recipe=./mine.yaml until=merge method.rank=32"),
        sections=("recipe", "method", "data", "model"),
        refused="the gate lets nothing ship",
    ),
    "label": Verb(
        "that one stage: a teacher answers the prompts, within budget, terms and privacy",
        ("label legal_distil", "label recipe=./mine.yaml teacher=openai teacher.budget_usd=5"),
        sections=("teacher",),
    ),
    "merge": Verb(
        "that one stage: the adapter into 16-bit weights",
        ("merge legal_lora", "merge recipe=./mine.yaml output=json"),
    ),
    "quantize": Verb(
        "that one stage: the merged model in each wanted format",
        ("quantize legal_lora", "quantize recipe=./mine.yaml quantize=gguf_q8_0"),
        sections=("quantize",),
    ),
    "evaluate": Verb(
        "that one stage: every arm on the test rows, and the gate; "
        "or evaluate model=models:/NAME@champion data=NEW.jsonl: has it drifted?",
        ("evaluate legal_lora gate=strict", "evaluate model=models:/legal_lora@champion data=new.jsonl"),
        words={
            "model": Word("", "what is in production: models:/NAME@ALIAS, models:/NAME/3 or a bundle's folder"),
            "data": Word("", "fresh rows with right answers"),
            "engine": ENGINE,
            "key": KEY,
            "function": Word("", "the file of evaluate.function, where it does not travel with the model"),
            **STORED,
            **PRINTED,
        },
        sections=("evaluate", "gate"),
        refused="the gate lets nothing ship, or the model has drifted",
    ),
    "bundle": Verb(
        "that one stage: what may ship, loaded and asked in the engine that will serve it",
        ("bundle legal_lora", "bundle recipe=./mine.yaml bundle.adapter=true"),
        sections=("bundle",),
        refused="an engine did not answer as training does",
    ),
    "register": Verb(
        "that one stage: the proven bundles into the MLflow registry",
        ("register legal_lora", "register recipe=./mine.yaml tracking.registered_model=tickets"),
        sections=("tracking",),
    ),
    "route": Verb(
        "which requests the student may keep, by a promise that is told once on the test",
        ("route legal_distil_openai", "route recipe=./mine.yaml route.most_harm=0.02 route.scores=[logprob,least]"),
        sections=("route",),
        refused="the promise cannot be kept, or no router is needed",
    ),
    "plan": Verb(
        "what would happen: rows, tokens, steps, memory, disk, formats, licence; runs nothing",
        ("plan legal_lora", "plan recipe=./mine.yaml quantize=w8a8 output=json"),
        sections=("recipe", "method", "data"),
    ),
    "cost": Verb(
        "what API, student or both cost, from which volume on",
        ("cost legal_distil_openai cost.requests_a_month=3e6", "cost recipe=./mine.yaml cost=gpu_h100 output=json"),
        sections=("cost",),
    ),
    "preview": Verb(
        "rows as the model will see them, the trained tokens in colour",
        ("preview legal_lora", "preview recipe=./mine.yaml rows=10"),
        sections=("recipe", "data"),
    ),
    "chat": Verb(
        "a word with the student, proven or not, beside its base if wanted: chat recipe=NAME, bundle=FOLDER or "
        "model=models:/NAME@champion",
        ("chat legal_lora beside=base", "chat bundle=exported/legal_lora"),
        words={
            "bundle": Word("", "a bundle's folder, in the engine that serves it"),
            "model": Word("", "a registered model: models:/NAME@ALIAS or models:/NAME/3"),
            "arm": Word("student", "student, or a format of the recipe's run: gguf_q8_0"),
            "beside": Word("", "base: the untuned model answers too", ("", "base")),
            "system": Word("", "a system prompt; empty: the recipe's data.system"),
            "max_new_tokens": Word(256, "longest answer (tokens)"),
            "engine": ENGINE,
            "key": KEY,
            **STORED,
            **PRINTED,
        },
    ),
    "verify": Verb(
        "prove a bundle in its real engine: verify bundle=FOLDER; or the log of what has left: verify egress",
        ("verify bundle=exported/legal_lora", "verify egress"),
        recipe=False,
        first="bundle",
        words={
            "bundle": Word("", "the bundle's folder"),
            "engine": Word("auto", "auto, none (bytes and signature alone) or an engine's name"),
            "key": KEY,
            "egress": Word(False, "hold the log of what has left against its chain"),
            "experiments": EXPERIMENTS,
            **PRINTED,
        },
        refused="a check does not hold",
    ),
    "serve": Verb(
        "the right engine on a bundle, on loopback, with a curl line that works: serve bundle=FOLDER",
        ("serve bundle=exported/legal_lora", "serve exported/legal_lora port=9000"),
        recipe=False,
        first="bundle",
        words={
            "bundle": Word("", "the bundle's folder"),
            "engine": ENGINE,
            "key": KEY,
            "port": Word(8000, "port on loopback"),
            "context": Word(0, "longest prompt and answer (tokens); 0: the bundle's own"),
            "debug": DEBUG,
        },
        refused="a check does not hold",
    ),
    "export": Verb(
        "a proven bundle to a folder, an object store or a hub: export from=models:/NAME@champion to=FOLDER_OR_URL",
        ("export from=models:/legal_lora@champion to=exported/legal_lora", "export from=FOLDER to=hf://ORG/NAME"),
        recipe=False,
        words={
            "from": Word("", "models:/NAME@ALIAS, models:/NAME/3, or a bundle's folder"),
            "to": Word("", "a folder, hf://ORG/NAME, s3://, gs:// or az://"),
            "key": KEY,
            **STORED,
            "debug": DEBUG,
        },
        refused="a check of the bundle does not hold",
    ),
    "compare": Verb(
        "runs side by side, paired item by item: compare runs=NAME/DIGEST,NAME/DIGEST",
        ("compare runs=legal_lora/7e055611,legal_full", "compare legal_lora,legal_full metric=exact_match"),
        recipe=False,
        first="runs",
        words={
            "runs": Word("", "two runs or more: NAME/DIGEST, or NAME where it has one evaluated run"),
            "metric": Word("", "what decides; empty: the first run's"),
            "out": Word("", "where the page is written; empty: in the experiments folder"),
            "experiments": EXPERIMENTS,
            **PRINTED,
        },
    ),
    "list": Verb(
        "what there is: list recipes, models, teachers, formats or runs",
        ("list", "list runs output=json"),
        recipe=False,
        first="what",
        words={
            "what": Word("", "one of " + ", ".join(LISTED) + "; empty: all of them", ("", *LISTED)),
            "experiments": EXPERIMENTS,
            **PRINTED,
        },
    ),
    "init": Verb(
        "a recipe from a data file, or from another tool's: init rows.csv, init from=axolotl.yml",
        ("init tickets.csv", "init from=axolotl.yml to=mine.yaml"),
        recipe=False,
        first="data",
        words={
            "data": Word("", "a file of rows: CSV, TSV, JSON lines, JSON, Parquet"),
            "from": Word("", "a configuration of Axolotl, LLaMA-Factory, TRL, Unsloth, or an OpenAI job's JSON"),
            "to": Word("", "the recipe's file; empty: the data's name, with .yaml"),
            "model": Word("", "a noun of configs/model/; empty: one that this machine can train"),
            **PRINTED,
        },
    ),
    "ui": Verb(
        "the MLflow UI on this project's store, loopback only",
        ("ui", "ui port=5001 experiments=runs"),
        recipe=False,
        words={"port": Word(5000, "port on loopback"), **STORED, "debug": DEBUG},
    ),
    "review": Verb(
        "answers that people have corrected in MLflow, as a file: review recipe=NAME to=reviewed.jsonl",
        ("review recipe=legal_lora to=reviewed.jsonl", "review legal_lora to=reviewed.jsonl experiments=runs"),
        recipe=False,
        first="recipe",
        words={
            "recipe": Word("", "the recipe whose runs were reviewed"),
            "to": Word("", "the file of corrected answers, for `label`"),
            "uri": URI,
            "experiments": EXPERIMENTS,
            "debug": DEBUG,
        },
    ),
    "doctor": Verb(
        "versions, devices, disk, store, and which keys are set",
        ("doctor", "doctor output=json"),
        recipe=False,
        words={**STORED, **PRINTED},
    ),
    "completion": Verb(
        "a script by which a shell completes verbs, keys and nouns: completion bash, completion zsh",
        ("completion bash > ~/.local/share/bash-completion/completions/workbench", "completion zsh"),
        recipe=False,
        first="shell",
        words={"shell": Word("", "bash or zsh", ("bash", "zsh")), "debug": DEBUG},
    ),
}
