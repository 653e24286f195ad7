"""What of Hydra itself a recipe or a command may set, asked before Hydra runs: its node can start any code.

Callbacks, logging factories and handlers, launchers and `env_set` act before a job sees its config. So a recipe holds
no `hydra` node but `hydra.sweeper.params`, a command a short list of words, and what they compose to is held against
what Hydra gives by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from workbench.errors import RequestError
from workbench.recipe.foreign import answer, meant_by
from workbench.recipe.read import known_keys, refuse_resolvers, walk

SWEPT = "hydra.sweeper.params"
# Flags with their values; None: the flag stands alone. An abbreviation of a flag is no flag here.
FLAGS: Mapping[str, tuple[str, ...] | None] = {
    "-m": None, "--multirun": None, "-h": None, "--help": None, "--hydra-help": None, "--version": None,
    "--resolve": None, "-c": ("job", "hydra", "all"), "--cfg": ("job", "hydra", "all"),
    **dict.fromkeys(("-i", "--info"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}  # fmt: skip
OPTIONAL_VALUE = ("-i", "--info")
WORDS: Mapping[str, str] = {
    "hydra/launcher": "basic|joblib|submitit_local|submitit_slurm",
    "hydra/sweeper": "basic|optuna",
    # How many trials, how many at once, which way is better; what else Optuna may be told (its storage) is a place.
    "hydra.sweeper.n_trials": r"\d{1,4}",
    "hydra.sweeper.n_jobs": r"\d{1,3}",
    "hydra.sweeper.direction": "maximize|minimize",
    "hydra.sweeper.max_failure_rate": r"0(\.\d{1,4})?|1(\.0)?",
    "hydra.sweeper.sampler.seed": r"\d{1,9}",
    **{
        f"hydra.launcher.{name}": r"\d{1,6}"
        for name in ("n_jobs", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes",
                     "array_parallelism")
    },
    **{f"hydra.launcher.{name}": r"[\w.-]{1,64}" for name in ("partition", "qos", "account", "constraint")},
}  # fmt: skip
ALLOWED = f"{SWEPT} in a recipe; in a command hydra/launcher=basic, hydra/sweeper=basic|optuna and their numbers"
SELF_MADE = ("runtime", "searchpath")  # what Hydra writes there is where it found what, and ours


def flags_of(words: list[str]) -> tuple[list[str], list[str]]:
    """(flags, words without them): only flags that show or sweep what the words say."""
    flags: list[str] = []
    rest: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            rest.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in FLAGS:
            raise RequestError(f"{name} is no flag here", where=name, remedy=as_a_key(name.lstrip("-")))
        values = FLAGS[name]
        if values is not None and not equals and waiting and waiting[0] in values:
            equals, value = "=", waiting.pop(0)
        alone = not equals and (values is None or name in OPTIONAL_VALUE)
        if not alone and value not in (values or ()):
            remedy = "it takes no value" if values is None else f"{name} " + "|".join(values)
            raise RequestError(f"cannot read {word!r}", where=name, remedy=remedy)
        flags += [name, value] if equals else [name]
    return flags, rest


def as_a_key(word: str) -> str:
    """What a flag of another tool's is here: keys are written `key=value`, without dashes."""
    word = word.replace("-", "_")
    if word in ("recipe", "config", "config_file", "config_name", "yaml"):
        return "write recipe=NAME, or recipe=./FILE.yaml"
    known = answer(word)
    if known:
        return f"{known}; write key=value, without dashes"
    meant = meant_by(word, list(known_keys())) if word not in known_keys() else f"did you mean {word!r}?"
    if meant.startswith("did you mean"):
        return f"{meant} Write key=value, without dashes"
    return f"write key=value, without dashes; flags are {', '.join(sorted(FLAGS))}"


def check_folder(folder: Path) -> None:
    """No folder that Hydra looks into for nouns may hold files that it takes for its own, or for the schema."""
    for name in ("hydra", "hydra.yaml", "workbench.yaml"):
        if (folder / name).exists():
            raise RequestError(
                f"{name} in this folder would stand in the place of what the workbench or Hydra brings",
                where=str(folder / name),
                remedy="rename it, or move the recipe to a folder of its own",
            )


def check_text(text: str, content: object, path: Path) -> None:
    """Refuse a YAML file that moves itself to another place (`# @package`), sets Hydra, or holds a resolver."""
    if re.search(r"^\s*#\s*@", text, re.MULTILINE):
        raise RequestError("a package header is not allowed", where=str(path), remedy="take the line `# @…` out")
    for key, value in walk(content):
        refuse_resolvers(f"{path}: {key}", key)
        refuse_resolvers(f"{path}: {key}", value)
        top = key.split(".")[0]
        if re.match(r"\W*hydra(\W|$)", top, re.ASCII) and not SWEPT.startswith(key) and not key.startswith(f"{SWEPT}."):
            refuse(f"{path}: {key}")


def sweep_words(content: object, path: Path) -> Iterator[str]:
    """The words that a recipe's own `hydra.sweeper.params` would add to the command."""
    node = content
    for part in SWEPT.split("."):
        node = node.get(part) or {} if isinstance(node, dict) else {}
    if not isinstance(node, dict):
        refuse(f"{path}: {SWEPT}")
    for key, value in node.items():
        if isinstance(value, (dict, list)):
            refuse(f"{path}: {SWEPT}.{key}")
        yield f"{key}={value}"


def check_word(key: str, value: str) -> None:
    """Refuse a word of Hydra's own that is not on the list."""
    name = key.lstrip("+")
    if name not in WORDS or not re.fullmatch(WORDS[name], value, re.ASCII):
        refuse(f"{key}={value}")


def refuse(where: str) -> NoReturn:
    """Hydra's own settings are not a recipe's."""
    raise RequestError(
        "Hydra's own settings can run code, so a recipe or a command may not hold this one",
        where=where,
        remedy=f"take it out; allowed is {ALLOWED}",
    )


def check_composed(path: Path, name: str, overrides: list[str], settings: list[str]) -> list[str]:
    """Compose `name` of the recipe's folder in memory; hold its `hydra` node against the one Hydra makes by itself.

    Returns the words that its own sweep would add to the command, from wherever they came.

    `overrides` are the command's words, `settings` our own. Words that are swept over are left out: none of them can
    name Hydra's node.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    still = [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    of_hydra = [word for word in still if word.lstrip("+~").startswith("hydra")]
    plain = dict(walk(hydra_node("workbench", None, [*of_hydra, *settings])))
    node = hydra_node(name, path.parent, [*still, *settings])
    for key, value in walk(node):
        if key.split(".")[0] in SELF_MADE or key.startswith("sweeper.params"):
            continue
        if not isinstance(value, (dict, list)) and value != plain.get(key):
            refuse(f"hydra.{key}")
    return list(sweep_words({"hydra": node}, path))


def hydra_node(name: str, folder: Path | None, words: list[str]) -> Any:
    """The `hydra` node of a config as plain values, nothing in it resolved; what its job is called is left out."""
    GlobalHydra.instance().clear()
    started = (
        hydra.initialize_config_dir(str(folder), version_base="1.3", job_name="workbench")
        if folder
        else hydra.initialize(config_path=None, version_base="1.3", job_name="workbench")
    )
    with started:
        config: DictConfig = hydra.compose(name, overrides=words, return_hydra_config=True)
    node = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(node, dict)
    for made in ("config_name", "override_dirname"):
        node["job"].pop(made, None)
    node["overrides"].pop("task", None)
    return node
