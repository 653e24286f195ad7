"""Another tool's configuration as a recipe: what has a key here is carried over, what has none is said.

Axolotl's, LLaMA-Factory's and TRL's YAML, an OpenAI fine-tuning job's JSON, and the Python of an Unsloth or TRL script,
which is read and never run.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import RequestError
from workbench.pages.terminal import plain
from workbench.plain_yaml import read_yaml, read_yaml_file
from workbench.privacy.secrets import MASK, SECRET_VARIABLE, masked
from workbench.recipe.foreign import FOREIGN, VALUES
from workbench.sources import shipped_folder
from workbench.views.look import looked_at, quoted

LONGEST_FILE = 1_000_000  # bytes
TOOLS = {  # a key that only this tool's files have
    "Axolotl": ("base_model", "sequence_len", "micro_batch_size"),
    "LLaMA-Factory": ("finetuning_type", "cutoff_len", "dataset_dir", "stage"),
    "OpenAI": ("training_file",),
    "TRL": ("dataset_name", "use_peft", "lora_r"),
    "Unsloth": ("max_seq_length", "use_gradient_checkpointing"),
}
CLOSED = re.compile(r"^(gpt|o\d|davinci|babbage|ft:|claude|gemini-\d)")
DEFAULT_MODEL = "smollm2_135m"
ROWS = ("datasets", "dataset", "dataset_name", "training_file", "train_file", "data_files", "dataset_path")
PACKED, EVERY = ("all", "all-linear", "all_linear"), "all-linear"
AS_HERE: dict[str, tuple[object, ...]] = {  # values that ask for what is done here anyway: nothing to carry or to say
    "train_on_inputs": (False,), "train_on_prompt": (False,), "bf16": (True, "auto"), "fp16": (False,),
    "load_in_4bit": (False,), "load_in_8bit": (False,), "lora_target_linear": (True,), "do_train": (True,),
    "use_peft": (True,), "stage": ("sft",), "push_to_hub": (False,), "strict": (False, True), "type": ("supervised",),
    "completion_only_loss": (True,), "packing": (False,), "sample_packing": (False,), "bias": ("none",),
    "task_type": ("CAUSAL_LM",), "full_finetuning": (False,), "trust_remote_code": (False,), "tf32": (False, True),
    "object": ("fine_tuning.job",), "split": ("train",), "group_by_length": (False,),
    "do_eval": (True, False), "shuffle": (True,),
    "plot_loss": (True, False), "overwrite_cache": (True, False), "report_to": ("none", "mlflow"),
}  # fmt: skip


class Carried:
    """What has been carried over so far: the recipe's values by key path, what was said of them, what was left out."""

    def __init__(self, given: dict[str, Any]):
        self.given, self.values = given, dict[str, Any]()
        self.notes: list[str] = []
        self.left: dict[str, str] = {}
        self.used: set[str] = set()

    def take(self, *words: str) -> object:
        """The value of the first of their keys that is there and not empty; all of them count as looked at."""
        self.used |= set(words)
        return next((v for w in words if (v := self.given.get(w)) not in (None, "", [], {}, "auto")), None)

    def leave(self, word: str, why: str) -> None:
        """Say that a key was not carried over."""
        self.used.add(word)
        self.left[word] = why


def carried_over(path: Path, data: str, model: str, models: Sequence[str]) -> tuple[str, list[str], str]:
    """(the recipe's text, what to say of it, its name); `data` and `model` name what the file cannot."""
    given = flat(content_of(path))
    tool = tool_of(given)
    carried = Carried(given)
    noun = model_of(carried, model, models)
    method = method_of(carried)
    data_of(carried, path, data)
    numbers_of(carried, tool)
    evaluate = scorer_for(carried)
    for word, value in given.items():
        if word not in carried.used and not is_as_here(word, value):
            known = FOREIGN.get(word)
            note = known.note if known else "there is no such key here"
            carried.left[word] = ": ".join(filter(None, [f"{known.key} here" if known and known.key else "", note]))
    defaults = [
        "workbench",
        *([f"{{model: {noun}}}"] if noun else []),
        f"{{method: {method}}}",
        f"{{evaluate: {evaluate}}}",
    ]
    left = [f"left out: {one_line(word)}: {shown(word, given.get(word))}" for word in carried.left]
    lines = [
        f"# Made by `workbench init` from {one_line(path.name)} ({tool}). Look it over; then `workbench plan @PATH@`.",
        f"defaults: [{', '.join(defaults)}, _self_]",
        *sections(carried.values),
        *(f"# {what} ({one_line(why)})" for what, why in zip(left, carried.left.values(), strict=True)),
    ]
    notes = [f"read as a file of {tool}'s: {len(carried.values)} values carried over", *carried.notes]
    notes += [f"{what} – {why}" for what, why in zip(left, carried.left.values(), strict=True)]
    return "\n".join(lines) + "\n", notes, path.name.partition(".")[0]


def content_of(path: Path) -> dict[str, Any]:
    """The file as keys and values. RequestError where it is none of the kinds that can be read."""
    if not path.is_file():
        raise RequestError(f"no such file: {path}", where="from", remedy="name a YAML, JSON or Python file")
    if path.stat().st_size > LONGEST_FILE:
        raise RequestError(
            f"it is longer than {LONGEST_FILE:,} bytes", where=str(path), remedy="is it a configuration?"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = keywords(text) if path.suffix == ".py" else read_yaml(text)  # JSON is YAML
    except (yaml.YAMLError, SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last: nested too deep
        why = one_line(str(error)) or "it is nested too deep"
        raise RequestError(f"cannot be read: {why}", where=str(path)) from None
    if not isinstance(content, dict) or not content:
        raise RequestError("it holds no keys and values", where=str(path), remedy="name a tool's configuration")
    return content


def keywords(text: str) -> dict[str, Any]:
    """The literal keyword arguments of every call in a Python file, names of literals resolved; nothing is run."""
    names: dict[str, Any] = {}
    values: dict[str, Any] = {}
    tree = ast.parse(text)

    def literal(node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = literal(node.value)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for word in node.keywords:
            value = literal(word.value)
            if word.arg and value is not None:
                values.setdefault(word.arg, value)
        if name == "load_dataset" and node.args:
            first = literal(node.args[0])
            files = values.pop("data_files", None)
            values["dataset"] = files if first in ("json", "csv", "parquet") and files else first
        if name == "train_on_responses_only":
            values["train_on_responses_only"] = True
    return values


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of inner mappings (OpenAI's hyperparameters) beside the outer ones; lists stay as they are."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and key not in ("fsdp_config", "special_tokens", "deepspeed", "metadata"):
            values |= flat(value)
        else:
            values[str(key)] = value
    return values


def tool_of(given: Mapping[str, Any]) -> str:
    """Whose file it seems to be: that with the most keys of its own."""
    counts = {tool: sum(word in given for word in words) for tool, words in TOOLS.items()}
    best = max(counts, key=lambda tool: counts[tool])
    return best if counts[best] else "another tool"


def model_of(carried: Carried, named: str, models: Sequence[str]) -> str:
    """The noun whose source the named model is; else the source goes into the recipe itself, and '' is returned."""
    source = carried.take(
        "base_model", "model_name_or_path", "model_name", "pretrained_model_name_or_path", "model", "model_id"
    )
    revision = carried.take("model_revision", "revision", "revision_of_model")
    if named:
        carried.notes.append(f"model: {named}, as you asked, in the place of {source}")
        return named
    if not isinstance(source, str):
        carried.notes.append(f"no model is named: {DEFAULT_MODEL} stands in")
        return DEFAULT_MODEL
    if CLOSED.match(source):
        carried.leave("model", f"its weights are closed; {DEFAULT_MODEL} stands in, model=NOUN chooses another")
        return DEFAULT_MODEL
    if Path(source).expanduser().is_dir():
        carried.values["model.source"] = f"dir:{source}"
        return ""
    by_source = {hub_of(noun): noun for noun in models}
    if source.lower() in by_source and not revision:
        carried.notes.append(f"model: {by_source[source.lower()]}, the noun of {source}")
        return by_source[source.lower()]
    carried.values["model.source"] = f"hf:{source}" + (f"@{revision}" if revision else "")
    carried.notes.append("model.licence and sizes are not known: a noun in configs/model/ would name them")
    return ""


def hub_of(noun: str) -> str:
    """A model noun's ORG/NAME on the hub, in small letters; empty where it comes from elsewhere."""
    for folder in (Path("configs"), shipped_folder() / "configs"):
        path = folder / "model" / f"{noun}.yaml"
        if path.is_file():
            source = str(read_yaml_file(path).get("source", ""))
            return source.removeprefix("hf:").partition("@")[0].lower() if source.startswith("hf:") else ""
    return ""


def method_of(carried: Carried) -> str:
    """The method's noun: an adapter where they train one, on a 4-bit base where they load one, else every weight."""
    kind = carried.take("adapter", "finetuning_type")
    four = carried.take("load_in_4bit", "use_4bit") is True or carried.take("quantization_bit") == 4
    carried.used |= {"use_peft", "full_finetuning"}
    ranks = any(carried.given.get(word) for word in ("lora_r", "lora_rank", "r"))
    if "training_file" in carried.given:  # such services tune adapters, and say nothing of them
        return "lora"
    if carried.given.get("full_finetuning") or kind == "full" or (kind is None and not ranks and not four):
        return "full"
    if kind is not None and kind not in ("lora", "qlora"):
        carried.leave("adapter" if "adapter" in carried.given else "finetuning_type", "LoRA stands in")
    return "qlora" if four or kind == "qlora" else "lora"


def data_of(carried: Carried, path: Path, named: str) -> None:
    """Where the rows are, and how they are laid out; more than one source cannot be carried over."""
    rows = carried.take(*ROWS)
    word = next((word for word in ROWS if carried.given.get(word)), ROWS[0])
    folder = carried.take("dataset_dir")
    parts = (
        rows if isinstance(rows, list) else [p.strip() for p in rows.split(",")] if isinstance(rows, str) else [rows]
    )
    first = parts[0] if parts else None
    about = first if isinstance(first, dict) else {}
    source = about.get("data_files") or about.get("path") or first
    source = source[0] if isinstance(source, list) and source else source
    if len(parts) > 1:
        others = [str(p.get("path", p) if isinstance(p, dict) else p) for p in parts[1:]]
        carried.leave(word, f"only the first is carried over; put the rows of {', '.join(others)} into the same file")
    if about.get("type") and not isinstance(about["type"], dict):
        carried.notes.append(f"rows of type {about['type']}: their layout is read from the rows themselves")
    fields = about["type"] if isinstance(about.get("type"), dict) else about
    for theirs, ours in (("field_instruction", "prompt"), ("field_output", "answer"), ("field_system", "system")):
        if isinstance(fields.get(theirs), str):
            carried.values[f"data.columns.{ours}"] = fields[theirs]
    carried.values["data.train"] = named_source(carried, word, source, folder, path, named)
    held = carried.take("test_datasets", "eval_dataset", "validation_file")
    held = held[0] if isinstance(held, list) and held else held
    held = held.get("path") if isinstance(held, dict) else held
    if isinstance(held, str):
        carried.values["data.validation"] = local_or_hub(held, path)
    system = carried.take("system_prompt", "default_system")
    if isinstance(system, str):
        carried.values["data.system"] = system


def named_source(carried: Carried, word: str, source: object, folder: object, path: Path, named: str) -> str:
    """The rows' source as it is written here; a stand-in, said aloud, where the file does not name one."""
    if named:
        return f"file:{named}"
    if not isinstance(source, str):
        carried.notes.append("no rows are named: put them into rows.jsonl, or say data=FILE")
        return "file:rows.jsonl"
    if source.startswith("file-"):  # an upload's number
        carried.leave(word, "an upload's number: put its rows into training.jsonl, or say data=FILE")
        return "file:training.jsonl"
    place = Path(str(folder)) if folder else path.parent / "data"
    for table in (path.parent / place / "dataset_info.json", place / "dataset_info.json"):
        known = content_of(table) if table.is_file() else {}
        entry = known.get(source)
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
            return f"file:{table.parent / entry['file_name']}"
    if folder and "/" not in source and not Path(source).suffix:
        carried.notes.append(f"{source} is a name of dataset_info.json, which is not here: its file is guessed")
        return f"file:{folder}/{source}.json"
    return local_or_hub(source, path)


def local_or_hub(source: str, path: Path) -> str:
    """A file beside the configuration or here, else a data set on the hub."""
    for place in (Path(source), path.parent / source):
        if place.exists():
            return ("dir:" if place.is_dir() else "file:") + str(place)
    is_file = Path(source).suffix in (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt") or source.startswith(
        ("/", ".")
    )
    return f"file:{source}" if is_file or source.count("/") != 1 else f"hf:{source}"


def numbers_of(carried: Carried, tool: str) -> None:
    """Sizes, rates and switches that have a key here, each brought into our unit."""
    values, given = carried.values, carried.given
    plain_ones: tuple[tuple[str, Callable[[Any], Any], tuple[str, ...]], ...] = (
        ("method.rank", int, ("lora_r", "lora_rank", "r")),
        ("method.alpha", int, ("lora_alpha",)),
        ("method.dropout", float, ("lora_dropout",)),
        ("method.rslora", bool, ("use_rslora", "peft_use_rslora")),
        ("method.dora", bool, ("use_dora", "peft_use_dora")),
        ("method.learning_rate", float, ("learning_rate", "lr")),
        ("method.weight_decay", float, ("weight_decay",)),
        ("method.max_grad_norm", float, ("max_grad_norm",)),
        ("method.epochs", float, ("num_epochs", "num_train_epochs", "n_epochs")),
        ("method.max_length", int, ("sequence_len", "cutoff_len", "max_seq_length", "max_length", "max_seq_len")),
        ("method.warmup_share", float, ("warmup_ratio",)),
        ("data.limit", int, ("max_samples", "max_train_samples")),
        ("seed", int, ("seed", "random_state")),
        ("tracking.registered_model", registered, ("suffix",)),
    )
    for key, kind, words in plain_ones:
        value = carried.take(*words)
        if value is None:
            continue
        try:
            values[key] = kind(value)
        except (TypeError, ValueError, OverflowError):  # the last: infinity as a whole number
            carried.leave(next(w for w in words if w in given), f"{value!r} is no number")
    if values.get("method.dropout") == 0:
        del values["method.dropout"]
    steps = carried.take("max_steps")
    if isinstance(steps, int) and steps > 0:
        values["method.max_steps"] = steps
    warmup = carried.take("warmup_steps")
    if isinstance(warmup, int) and warmup and "method.warmup_share" not in values:
        if values.get("method.max_steps"):
            values["method.warmup_share"] = round(warmup / values["method.max_steps"], 4)
        else:
            carried.leave("warmup_steps", "a share of the steps here: method.warmup_share, 0.05 by default")
    for key, words in (
        ("method.optimizer", ("optimizer", "optim")),
        ("method.schedule", ("lr_scheduler", "lr_scheduler_type")),
    ):
        value = carried.take(*words)
        if value is not None and VALUES[key].get(str(value)):
            values[key] = VALUES[key][str(value)]
        elif value is not None:
            carried.leave(next(w for w in words if w in given), f"{key} has no {value!r}; the default stands")
    batches_of(carried, tool)
    targets = carried.take("lora_target_modules", "lora_target", "target_modules", "peft_target_modules")
    if isinstance(targets, str):
        targets = [EVERY] if targets in PACKED else [name.strip() for name in targets.split(",")]
    if isinstance(targets, list) and targets != [EVERY]:
        values["method.target_modules"] = [str(name) for name in targets]
    share = carried.take("val_set_size", "val_size")
    if isinstance(share, int | float) and not isinstance(share, bool) and share:
        if 0 < share <= 0.5:
            values["data.validation_share"] = float(share)
        else:
            carried.leave(next(w for w in ("val_set_size", "val_size") if w in given), "a share of the rows here")
    checkpointing = carried.take("gradient_checkpointing", "use_gradient_checkpointing")
    if checkpointing is not None:
        values["method.checkpointing"] = "on" if checkpointing else "off"
    if carried.take("assistant_only_loss", "train_on_responses_only") is True:
        values["method.train_on"] = "all_answers"
    if tool == "LLaMA-Factory" and "method.rank" in values and "method.alpha" not in values:
        values["method.alpha"] = 2 * values["method.rank"]
        carried.notes.append(f"method.alpha={values['method.alpha']}: twice the rank, which is their default")
    if given.get("fp16") is True:
        carried.used.add("fp16")
        values["model.dtype"] = "float16"


def batches_of(carried: Carried, tool: str) -> None:
    """Rows a step: theirs a device times the accumulation."""
    micro = carried.take("micro_batch_size", "per_device_train_batch_size")
    gathered = carried.take("gradient_accumulation_steps")
    whole = carried.take("batch_size")
    if isinstance(micro, int):
        carried.values["method.micro_batch_size"] = micro
        carried.values["method.batch_size"] = micro * (gathered if isinstance(gathered, int) else 1)
        if isinstance(gathered, int) and gathered > 1:
            carried.notes.append(f"method.batch_size={micro * gathered}: {micro} a pass times {gathered} accumulated")
    elif isinstance(whole, int):
        carried.values["method.batch_size"] = whole
    if tool == "OpenAI" and carried.take("learning_rate_multiplier") is not None:
        carried.leave(
            "learning_rate_multiplier", "a multiple of a rate that is not told; method.learning_rate is a rate"
        )


def registered(value: object) -> str:
    """A registered model's name of a suffix."""
    return re.sub(r"[^\w-]+", "_", str(value)).strip("_") or "student"


def scorer_for(carried: Carried) -> str:
    """How answers are scored: by a look at the rows where they are here, else as free text."""
    source = str(carried.values.get("data.train", ""))
    path = Path(source.partition(":")[2])
    if source.startswith("file:") and path.is_file():
        try:
            look = looked_at(path)
        except RequestError:
            return "generation"
        if look.scorer == "json_fields":
            carried.values["evaluate.fields"] = look.fields
        for role, column in look.columns.items():
            carried.values.setdefault(f"data.columns.{role}", column)
        carried.notes.append(f"answers are scored by {look.scorer}: that is what the rows look like")
        return look.scorer
    carried.notes.append(
        "the rows are not here: answers are scored as free text; evaluate=label or json_fields may fit"
    )
    return "generation"


def is_as_here(word: str, value: object) -> bool:
    """Whether a value asks for what is done here anyway, or for nothing."""
    return value in (None, "", [], {}, "auto") or any(value is v or value == v for v in AS_HERE.get(word, ()))


def sections(values: Mapping[str, Any]) -> list[str]:
    """The values as YAML, one line a section; a key without a section on its own."""
    by_section: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        node = by_section.setdefault(section if rest else "", {})
        if rest.startswith("columns."):
            node.setdefault("columns", {})[rest.removeprefix("columns.")] = value
        else:
            node[rest or key] = value
    lines = [f"{section}: {as_flow(node)}" for section, node in by_section.items() if section]
    return lines + [f"{key}: {as_flow(value)}" for key, value in by_section.get("", {}).items()]


def as_flow(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:g}"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def shown(word: str, value: object) -> str:
    """A value of theirs, short, and none where its key says that it opens something: a recipe holds no secret."""
    if SECRET_VARIABLE.search(word) and isinstance(value, str):
        return MASK
    text = one_line(plain(value))
    return text if len(text) <= 60 else text[:59] + "…"


def one_line(text: str) -> str:
    """A text of theirs on one line, so that it stays in the comment it is written into, without what opens something.

    YAML knows more breaks of a line than `\\n`; to Python they are all white space.
    """
    return " ".join(masked(text).split())
