"""From words on the command line to checked recipes: Hydra composes here and nowhere else.

A plain command is composed in memory and writes nothing. Hydra's own flags (`-m`, `--cfg`, `--info`, …)
go through `hydra.main`, so that sweeps, launchers and its help work as its documentation says; what of Hydra a recipe
or a command may set is asked before, by `workbench.hydra_guard`.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from workbench import errors, extras, hydra_guard
from workbench.command import swept, typed
from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.plain_yaml import YAMLSizeError, read_yaml_nodes, yaml_text
from workbench.privacy.secrets import masked
from workbench.recipe import Recipe, known_keys, read, refuse_secrets, register_schema
from workbench.recipe.read import bad_key, check_recipe_name, refuse_resolvers, walk
from workbench.recipe.typed_text import refuse_retyped, refuse_retyped_word
from workbench.sources import shipped_folder

Task = Callable[[Recipe], int]
# Nothing of Hydra's is written beside a run: the run's own folder holds the composed recipe.
QUIET = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
    "hydra.sweep.subdir=${hydra.job.num}",
]


# What Hydra would compose for runs of its own: a fifth of the time, and no part of a recipe.
OF_HYDRA = ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging", "env")
MOST_TRIALS = 10_000
# Mappings whose own keys a recipe names; Hydra would want a `+` before one that is not there yet.
OPEN_ENDED = ("teacher.fields.", "cost.sources.", "cost.ranges.", "cost.as_of.")


def run_with_recipe(verb: str, words: list[str], task: Task) -> int:
    """Compose each named recipe with the overrides, and run the task with it; the worst exit code wins."""
    flags, words = hydra_guard.flags_of(words)
    words = with_recipe_named(words)
    names = [w.partition("=")[2] for w in words if w.startswith("recipe=")]
    overrides = [w for w in words if not w.startswith("recipe=")]
    check_words(overrides)
    if not names:
        remedy = f"workbench {verb} " + "|".join(sorted(recipes())) + ", or ./YOURS.yaml, which init FILE writes"
        raise RequestError(f"{verb} needs a recipe", remedy=remedy)
    sweep = bool({"-m", "--multirun"} & set(flags))
    chosen = names[-1].split(",") if sweep else [names[-1]]
    paths = [find_recipe(name) for name in chosen]
    for path in paths:
        check_nouns(path, overrides)
    overrides = with_model_of_source(paths[0], overrides)
    if flags:
        for path in paths:  # Hydra writes what it sweeps over, and shows it, before a job looks at it
            refuse_secrets_in(composed(path, []))
        return max(
            run_in_hydra(verb, path, name, flags, overrides, task) for path, name in zip(paths, chosen, strict=True)
        )
    with typed([f"recipe={chosen[0]}", *overrides]):
        return task(checked(paths[0], overrides))


def checked(path: Path, overrides: list[str]) -> Recipe:
    """The recipe of a file that `find_recipe` has looked at, composed and checked."""
    return read(composed(path, overrides), path.stem)


def composed_file(name: str) -> Recipe:
    """The recipe of a file, looked at, composed and checked as a command would."""
    return checked(find_recipe(name), [])


def with_recipe_named(words: list[str]) -> list[str]:
    """The words with `recipe=` before a recipe's bare name: `train legal_lora` is `train recipe=legal_lora`."""
    if any(word.startswith("recipe=") for word in words):
        return words
    bare = next((word for word in words if "=" not in word and not word.startswith(("+", "~"))), None)
    return [f"recipe={word}" if word == bare else word for word in words]


def is_source_of_model(key: str, value: str) -> bool:
    """Whether a word names a model by where it lies, as `model=hf:org/name` does, not by a noun."""
    return key == "model" and bool(re.match(r"(?:hf|dir|file|pypi|mlflow):", value)) and "," not in value


def with_model_of_source(path: Path, overrides: list[str]) -> list[str]:
    """The overrides with `model=hf:org/name` as that source, without the noun whose sizes are another model's."""
    named = next((w for w in overrides if is_source_of_model(*w.partition("=")[::2])), None)
    if named is None:
        return overrides
    source = named.partition("=")[2]
    last = re.split(r"[/!]", source.partition(":")[2].partition("@")[0].rstrip("/"))[-1]
    name = re.sub(r"\W+", "_", last.lower()).strip("_") or "model"
    nouns = any(isinstance(entry, dict) and "model" in entry for entry in yaml_of(path)["defaults"])
    words = [*(["~model"] if nouns else []), f'model.source="{source}"', f"model.name={name}"]
    return [w for word in overrides for w in (words if word == named else [word])]


def recipes() -> dict[str, Path]:
    """Every recipe that can be named: `./recipes` first, then the shipped ones."""
    by_name: dict[str, Path] = {}
    for folder in (Path("recipes"), shipped_folder() / "recipes"):
        for path in sorted(folder.glob("*.yaml")):
            by_name.setdefault(path.stem, path.resolve())
    return by_name


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or by path, looked at before Hydra sees it."""
    known = recipes()
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).resolve()
        if not path.is_file():
            raise RequestError(f"no such file: {name}", where="recipe", remedy=nearest(path.stem, known))
    elif name in known:
        path = known[name]
    elif Path(f"{name}.yaml").is_file():
        raise RequestError(f"no such recipe {name!r}", where="recipe", remedy=f"the file here is recipe=./{name}.yaml")
    elif Path(name).is_file():
        remedy = f"workbench init {shlex.quote(name)}"
        raise RequestError(f"{name} is no recipe; one can be made from a file of rows", where="recipe", remedy=remedy)
    else:
        raise RequestError(f"no such recipe {name!r}", where="recipe", remedy=nearest(name, known))
    if path.suffix != ".yaml" or path.stem.endswith(".yaml"):
        # Hydra is given the name without its ending, and would read another file than the one looked at here.
        raise RequestError("a recipe's file ends in .yaml, once", where=str(path), remedy="rename it to NAME.yaml")
    check_recipe_name(path.stem)
    hydra_guard.check_folder(path.parent)
    content = yaml_of(path)
    for word in hydra_guard.sweep_words(content, path):
        check_words([word])
    defaults = content.get("defaults") if isinstance(content, dict) else None
    if not isinstance(defaults, list) or not defaults or defaults[0] != "workbench":
        raise RequestError(
            "the recipe does not begin with the schema",
            where=f"{path}: defaults",
            remedy="write `defaults: [workbench, …]`: it brings every key with its default",
        )
    check_defaults(defaults, path)
    return path


def yaml_of(path: Path, group: str = "") -> Any:
    """A YAML file's content, with nothing in it that Hydra would act upon while it composes, and its text as typed."""
    try:
        text = yaml_text(path)
    except UnicodeDecodeError as error:
        raise RequestError(f"not valid YAML: {error}", where=str(path)) from None
    except YAMLSizeError as error:
        raise RequestError(str(error), where=str(path), remedy="is it a recipe?") from None
    return looked_at(text, path, group)


@functools.lru_cache(maxsize=64)
def looked_at(text: str, path: Path, group: str) -> object:
    """The content of `yaml_of`, which nobody writes to: a command looks at its recipe more than once."""
    try:
        content, root = read_yaml_nodes(text)
    except yaml.YAMLError as error:
        raise RequestError(f"not valid YAML: {error}", where=str(path)) from None
    except YAMLSizeError as error:
        raise RequestError(
            str(error), where=str(path), remedy="write the values themselves, without anchors and aliases"
        ) from None
    except (RecursionError, ValueError) as error:  # a number or a date that Python cannot hold
        raise RequestError(f"its YAML cannot be read: {error}", where=str(path)) from None
    hydra_guard.check_text(text, content, path)
    refuse_retyped(root, str(path), group)
    return content


def check_nouns(path: Path, overrides: list[str]) -> None:
    """Look at every other file that a recipe, or a word beside it, brings in."""
    content = yaml_of(path)
    words = [word.partition("=") for word in [*overrides, *hydra_guard.sweep_words(content, path)]]
    named = [(key.lstrip("+"), value.strip("[]").split(",")) for key, _, value in words if not value.startswith("{")]
    entries: list[Any] = [*content["defaults"], *({key: names} for key, names in named if key in groups())]
    for entry in entries:
        for group, value in entry.items() if isinstance(entry, dict) else [("", entry)]:
            for name in value if isinstance(value, list) else [value]:
                check_noun(group, str(name).strip(), [path.parent, *config_folders()], set())


def check_noun(group: str, name: str, folders: list[Path], seen: set[Path]) -> None:
    """Look at each file that a noun's name may stand for, and at the siblings it may begin with.

    A sibling need not lie beside it: Hydra looks for each name in all of the `folders`.
    """
    for path in (folder / group / f"{name}.yaml" for folder in folders):
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        content = yaml_of(path, group)
        if isinstance(content, dict) and "hydra" in content:  # a sweep is the recipe's own, where it is looked at
            hydra_guard.refuse(f"{path}: hydra")
        defaults = content.get("defaults", []) if isinstance(content, dict) else []
        for sibling in defaults if isinstance(defaults, list) else [defaults]:
            if not isinstance(sibling, str) or not re.fullmatch(r"[\w-]+", sibling):
                raise RequestError(
                    "a noun's defaults name its own siblings alone",
                    where=f"{path}: defaults",
                    remedy="name nouns in recipes",
                )
            check_noun(group, sibling, folders, seen)


def config_folders() -> list[Path]:
    """Where nouns are looked up: the project's own `configs/`, then the shipped ones."""
    own = Path("configs").resolve()
    hydra_guard.check_folder(own)
    shipped = shipped_folder() / "configs"
    return [own, shipped] if own.is_dir() and own != shipped.resolve() else [shipped]


def options(group: str) -> list[str]:
    """The YAML files of one config group; for `x.yaml.yaml` Hydra would read `x.yaml`, so that one is none."""
    names = {p.stem for folder in config_folders() for p in (folder / group).glob("*.yaml")}
    return sorted(name for name in names if not name.endswith(".yaml"))


def groups() -> set[str]:
    """The config groups there are."""
    return {p.name for folder in config_folders() for p in folder.iterdir() if p.is_dir()}


def check_defaults(defaults: list[Any], path: Path) -> None:
    """Every noun that a recipe's defaults list names must exist."""
    for entry in defaults:
        if isinstance(entry, str) and not re.fullmatch(r"[\w-]+", entry):
            raise RequestError(f"{entry!r} is no noun", where=f"{path}: defaults", remedy="write `- group: noun`")
        for group, value in entry.items() if isinstance(entry, dict) else ():
            where = f"{path}: defaults: {group}"
            if group.split()[0] == "override" or "@" in group:
                raise RequestError("name the group itself, once", where=where, remedy=f"- {group.split()[-1]}: {value}")
            check_option(group, value, where)


def check_option(group: str, value: object, where: str) -> None:
    """Refuse an option that its group does not have, naming the nearest one."""
    if group not in groups():
        raise RequestError(f"no such group {group!r}", where=where, remedy=nearest(group, groups()))
    for name in value if isinstance(value, list) else [value]:
        if name is not None and str(name) not in options(group):
            raise RequestError(f"no such {group} {str(name)!r}", where=where, remedy=nearest(str(name), options(group)))


def check_words(overrides: list[str]) -> None:
    """Look at each override before Hydra does: it must be key=value, hold no secret, name a known noun."""
    for word in overrides:
        key, equals, value = word.partition("=")
        name = key.lstrip("+~")
        if not equals and not key.startswith("~"):
            raise RequestError(f"cannot read {word!r}", where=word, remedy="write key=value")
        refuse_secrets(name, value)
        refuse_resolvers(name, word)
        if name.startswith("hydra"):
            hydra_guard.check_word(key, value)
            continue
        refuse_retyped_word(name, word)
        if "@" in key:
            raise RequestError("a noun has its own place in the recipe", where=name, remedy=f"write {name}={value}")
        if name.rsplit(".", 1)[-1].startswith("_") or not is_key(name):
            raise bad_key(name, "no such key")
        if name in groups() and not value.startswith("{") and not is_source_of_model(name, value):
            for choice in value.strip("[]").split(","):
                check_option(name, choice.strip() or None, name)
        elif key.startswith(("+", "~")) and not name.startswith(("quantize.", *OPEN_ENDED)):
            raise (
                bad_key(name, "a recipe's keys are fixed")
                if name not in known_keys()
                else RequestError(f"{key[0]} is not needed here", where=name, remedy=f"write {name}={value}")
            )


def is_key(name: str) -> bool:
    """Whether the schema has this key; the names of formats and of a teacher's fields are the recipe's own."""
    keys = known_keys()
    own, _, rest = name.removeprefix("quantize.").partition(".")
    if name.startswith("quantize."):
        return bool(own) and (not rest or f"quantize.<name>.{rest}" in keys)
    return name in keys or name.startswith(OPEN_ENDED) or re.sub(r"(\.\d+|\[\d+\])$", "", name) in keys


def refuse_secrets_in(cfg: DictConfig) -> None:
    """Refuse a composed recipe that holds a secret anywhere."""
    for path, value in walk(OmegaConf.to_container(cfg, resolve=False)):
        refuse_secrets(path, value)


def composed(path: Path, overrides: list[str]) -> DictConfig:
    """Compose one recipe with its overrides, in memory."""
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(path.parent), version_base="1.3", job_name="workbench"):
            words = [*map(opened, overrides), *left_out(overrides), search_path()]
            return hydra.compose(with_groups(path, overrides), overrides=words)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise translated(error, path) from None


def left_out(overrides: list[str]) -> list[str]:
    """The overrides that leave Hydra's own groups out, but for those that are named."""
    named = {word.partition("=")[0] for word in overrides}
    return [f"~hydra/{group}" for group in OF_HYDRA if f"hydra/{group}" not in named]


def opened(word: str) -> str:
    """An override as Hydra wants it: a key of a mapping that may not be there yet is added."""
    return f"++{word}" if word.startswith(OPEN_ENDED) else word


def with_groups(path: Path, overrides: list[str]) -> str:
    """The config's name: the recipe's own, or that of a copy whose defaults have a place for each group of the words.

    `quantize=[w8a8]` on a recipe without `- quantize: …` would be an error of Hydra's, and appending it with a `+`
    would let the noun win over what the recipe says itself. The copy is kept in Hydra's store and never written.
    """
    defaults = list(yaml_of(path)["defaults"])
    there = {group for entry in defaults if isinstance(entry, dict) for group in entry}
    words = [word.lstrip("+").partition("=") for word in overrides]
    wanted = [key for key, _, value in words if key in groups() and not value.startswith("{") and key not in there]
    if not wanted:
        return path.stem
    place = defaults.index("_self_") if "_self_" in defaults else len(defaults)
    defaults[place:place] = [{str(group): None} for group in dict.fromkeys(wanted)]
    content = OmegaConf.load(path)  # as Hydra reads it
    content.defaults = defaults
    name = f"{path.stem}.with.{'.'.join(sorted(set(wanted)))}"
    ConfigStore.instance().store(name=name, node=content)
    return name


def search_path() -> str:
    """The override that tells Hydra where the nouns are."""
    return "hydra.searchpath=[" + ",".join(quoted(folder, "file://") for folder in config_folders()) + "]"


def translated(error: Exception, path: Path) -> RequestError:
    """One clear line for what Hydra or OmegaConf could not compose."""
    if isinstance(error, yaml.YAMLError):  # OmegaConf refuses a key that is there twice, which `yaml_of` does not
        return RequestError(f"not valid YAML: {' '.join(str(error).split())}", where=str(path))
    unquoted = re.search(r"Ambiguous value for argument '(?s:(.*?)=(.*))'", str(error).partition("\n1.")[0])
    if unquoted or isinstance(error, OverrideParseException):
        word = unquoted[0].partition("'")[2][:-1] if unquoted else str(getattr(error, "override", ""))
        name, _, value = word.removeprefix("++").partition("=")
        return RequestError(
            "a comma parts several values here" if unquoted else "this value cannot be read",
            where=name,
            remedy="quote what holds a comma, a bracket or the like: "
            + shlex.quote(f"{name}={json.dumps(value, ensure_ascii=False)}"),
        )
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            return bad_key(str(link.full_key), str(link.msg or link))
    key = re.search(r"full_key: (\S+)", str(error))
    if key:
        return bad_key(key[1], str(error).splitlines()[1])
    named = re.search(r"(?:Could not override|override) '?([\w.]+)'?", str(error))
    if named and named[1] not in known_keys():
        return bad_key(named[1], str(error))
    return RequestError(str(error).splitlines()[0], where=str(path))


def run_in_hydra(verb: str, path: Path, named: str, flags: list[str], overrides: list[str], task: Task) -> int:
    """Run under `hydra.main`: once for each combination of a sweep, or for Hydra's own displays."""
    register_schema()
    from workbench.stages import sweep

    codes: list[int] = []
    sweeps = verb == "train" and bool({"-m", "--multirun"} & set(flags))
    folder = Path("experiments/.sweeps").resolve() / f"{datetime.now():%Y%m%d-%H%M%S-%f}"

    def job(cfg: DictConfig) -> float | None:
        own = [word for word in HydraConfig.get().overrides.task if word not in settings]
        recipe = None
        try:
            with typed([f"recipe={named}", *own]), swept(folder.name if sweeps else ""):
                recipe = read(cfg, path.stem)
                code = task(recipe)
        except WorkbenchError as error:
            print(masked(f"error: {error}"), file=sys.stderr)
            code = error.exit_code
        codes.append(code)
        taken = [word for word in own if key_of(word) in several]  # Hydra writes words its own way
        return sweep.note(folder, int(HydraConfig.get().job.num), taken, recipe, code) if sweeps else None

    job.__name__ = verb  # Hydra takes the job's name from the task
    settings = [search_path(), *QUIET, f"hydra.sweep.dir={quoted(folder)}", *searching(overrides)]
    name = with_groups(path, overrides)
    arguments = [*flags, "--config-dir", str(path.parent), "--config-name", name, *map(opened, overrides), *settings]
    try:
        of_recipe = hydra_guard.check_composed(path, name, overrides, settings)
        check_words(of_recipe)
    except (HydraException, OmegaConfBaseException) as error:
        raise translated(error, path) from None
    several = swept_keys([*overrides, *of_recipe])
    if {"-m", "--multirun"} & set(flags):
        refuse_swept_twice(overrides, of_recipe, several)
        if "hydra/sweeper=optuna" not in overrides:
            refuse_uncountable([*overrides, *of_recipe])
    kept, sys.argv = sys.argv, ["workbench", *arguments]
    GlobalHydra.instance().clear()
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=None)(job)()
    except SystemExit as stop:  # Hydra has said why: a sweeper ends so where a trial has failed
        if not sweeps:
            raise
        codes.append(errors.FAILED if stop.code else errors.OK)
    finally:
        sys.argv = kept
    return max([*codes, sweep.end(folder) if sweeps else errors.OK])


def swept_keys(words: list[str]) -> set[str]:
    """The keys that words sweep over."""
    parsed = OverridesParser.create().parse_overrides(words)
    return {key_of(str(override.input_line)) for override in parsed if override.is_sweep_override()}


def key_of(word: str) -> str:
    """The key that a word sets."""
    return word.partition("=")[0].lstrip("+")


def refuse_swept_twice(overrides: list[str], of_recipe: list[str], several: set[str]) -> None:
    """A key that is swept over is named once: Optuna keeps a single value beside its interval, the others the last.

    A word beside the recipe's own sweep over its key takes that one's place, aloud.
    """
    keys = [key_of(word) for word in overrides]
    for word, key in zip(overrides, keys, strict=True):
        if key in several and keys.count(key) > 1:
            raise RequestError(
                "it is swept over, and named more than once", where=key, remedy="name it once, with all its values"
            )
        if key in several & {key_of(swept) for swept in of_recipe}:
            print(masked(f"  {word} takes the place of the recipe's own sweep over {key}"), file=sys.stderr)


def refuse_uncountable(words: list[str]) -> None:
    """A sweep's combinations are all written down before the first is tried: there are some, and not too many."""
    trials = 1.0
    for override in OverridesParser.create().parse_overrides(words):
        value = override.value() if override.is_sweep_override() else None
        where = key_of(str(override.input_line))
        if isinstance(value, IntervalSweep):
            raise RequestError(
                "only a search finds values between two ends", where=where, remedy="add hydra/sweeper=optuna"
            )
        count = 1.0 if value is None else 0.0
        if isinstance(value, ChoiceSweep):
            count = len(value.list)
        elif isinstance(value, RangeSweep):
            count = (float(value.stop or 0) - float(value.start or 0)) / (float(value.step) or 1e-9)
        if count <= 0:
            raise RequestError("this sweep names no value", where=where, remedy=f"{where}=VALUE,VALUE")
        trials *= max(1.0, count)
        if trials > MOST_TRIALS:
            raise RequestError(
                f"this sweep has more than {MOST_TRIALS:,} trials",
                where=where,
                remedy="name fewer values, or let hydra/sweeper=optuna search among them",
            )


def searching(overrides: list[str]) -> list[str]:
    """What Optuna is told where the command does not say it: more is better, one trial after the other, one seed."""
    words = dict(word.partition("=")[::2] for word in overrides)
    if words.get("hydra/sweeper") != "optuna":
        return []
    extras.require("hydra/sweeper=optuna", ["sweep"])
    own = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.n_jobs": "1", "hydra.sweeper.sampler.seed": "17"}
    return [f"{key}={value}" for key, value in own.items() if key not in words]


def quoted(folder: Path, before: str = "") -> str:
    """A path as a value in Hydra's grammar. RequestError for a name that Hydra would fill in from the environment."""
    if "${" in str(folder):
        raise RequestError(
            "a folder's name holds what Hydra takes for a resolver", where=str(folder), remedy="rename the folder"
        )
    return f"'{before}" + str(folder).replace("'", r"\'") + "'"
