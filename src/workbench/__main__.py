"""The door: a verb and a recipe, composed by Hydra, become plain values that a stage or a view is run with."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from workbench import errors, extras, files
from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.files import keep_private
from workbench.privacy.secrets import SECRET_KEY, credential_in, masked

if TYPE_CHECKING:
    from workbench.recipe import Recipe

LIFE = "the recipe to its end, from the first stage that is not done"
VERBS: dict[str, str] = {
    "train": LIFE,
    "label": "that one stage: a teacher answers the prompts, within budget, terms and privacy",
    "merge": "that one stage: the adapter into 16-bit weights",
    "quantize": "that one stage: the merged model in each wanted format",
    "evaluate": (
        "that one stage: every arm on the test rows, and the gate; "
        "or evaluate model=models:/NAME@champion data=NEW.jsonl: has it drifted?"
    ),
    "bundle": "that one stage: what may ship, loaded and asked in the engine that will serve it",
    "register": "that one stage: the proven bundles into the MLflow registry",
    "plan": "what would happen: rows, tokens, steps, memory, disk, formats, licence; runs nothing",
    "preview": "rows as the model will see them, the trained tokens in colour",
    "verify": "prove a bundle in its real engine: verify bundle=FOLDER; or the log of what has left: verify egress",
    "serve": "the right engine on a bundle, on loopback, with a curl line that works: serve bundle=FOLDER",
    "export": "a proven bundle to a folder or an object store: export from=models:/NAME@champion to=FOLDER_OR_URL",
    "compare": "runs side by side, paired item by item: compare runs=NAME/DIGEST,NAME/DIGEST",
    "ui": "the MLflow UI on this project's store, loopback only",
    "review": "answers that people have corrected in MLflow, as a file: review recipe=NAME to=reviewed.jsonl",
    "doctor": "versions, devices, disk, store, and which keys are set",
}
WITHOUT_RECIPE: dict[str, dict[str, Any]] = {
    "evaluate": {
        "model": "",
        "data": "",
        "engine": "auto",
        "key": "",
        "function": "",
        "output": "text",
        "debug": False,
    },
    "compare": {
        "runs": "",
        "metric": "",
        "out": "",
        "experiments": "experiments",
        "output": "text",
        "debug": False,
    },
    "verify": {
        "bundle": "",
        "engine": "auto",
        "key": "",
        "egress": False,
        "experiments": "experiments",
        "output": "text",
        "debug": False,
    },
    "serve": {"bundle": "", "engine": "auto", "key": "", "port": 8000, "context": 0, "debug": False},
    "export": {"from": "", "to": "", "key": "", "debug": False},
    "review": {"recipe": "", "to": "", "uri": "", "experiments": "experiments", "debug": False},
    "ui": {"port": 5000, "uri": "", "experiments": "experiments", "debug": False},
    "doctor": {"uri": "", "experiments": "experiments", "output": "text", "debug": False},
}
# What these verbs cannot do without; an engine that `verify` or `serve` starts asks for its own.
WITHOUT_RECIPE_EXTRAS = {"evaluate": ("train",), "ui": ("train",)}


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same clean end as Ctrl-C, another exit code."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code; no traceback unless `debug=true`."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "debug=true" in [word.lower() for word in words]
    signal.signal(signal.SIGTERM, terminate)
    prepare_libraries()
    try:
        refuse_secret_words(words)
        with keep_private():
            return run_verb(words)
    except WorkbenchError as error:
        return complain(files.disk_error(error, Path.cwd()) or error, debug)
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else errors.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.OK
    except Exception as error:
        known = (
            extras.explained(error) if isinstance(error, ModuleNotFoundError) else files.disk_error(error, Path.cwd())
        )
        if known is not None:
            return complain(known, debug)
        if debug:
            print(masked(traceback.format_exc()), file=sys.stderr)
        print(masked(f"failed: {type(error).__name__}: {error}\n  → debug=true shows where"), file=sys.stderr)
        return errors.FAILED


def terminate(_number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that stages end cleanly."""
    raise Terminated


def prepare_libraries() -> None:
    """Keep libraries from phoning home or talking over the screen; have torch take huge pages. The user's word wins."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "BITSANDBYTES_NOWELCOME": "1",
    }.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages: 4 to 14 % more training on a CPU
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that the CPU path does not need


def complain(error: WorkbenchError, debug: bool) -> int:
    """Print an error for a person and return its exit code."""
    if debug:
        print(masked("".join(traceback.format_exception(error))), file=sys.stderr)
    print(masked(f"error: {error}"), file=sys.stderr)
    return error.exit_code


def refuse_secret_words(words: list[str]) -> None:
    """No word may hold a secret: others see a command line, a shell keeps it, and what is wrong in it is repeated."""
    for word in words:
        name, _, value = word.partition("=")
        in_name = credential_in(name)
        what = in_name or credential_in(value) or ("what looks like a secret" if SECRET_KEY.search(name) else "")
        if what:
            raise RequestError(
                f"{what} stands on the command line",
                where="" if in_name else name,
                remedy="put it in an environment variable, or where its library looks for it, and give no value here",
            )


def run_verb(words: list[str]) -> int:
    """Find the verb and hand it its recipe or its words."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return errors.OK
    verb, rest = words[0], words[1:]
    if verb == "--version":
        from workbench import __version__

        print(__version__)
        return errors.OK
    if verb not in VERBS:
        raise RequestError(f"no such verb {verb!r}", remedy=nearest(verb, VERBS))
    if verb in WITHOUT_RECIPE and (verb != "evaluate" or is_recheck(rest)):
        return view_without_recipe(verb, plain_words(rest, WITHOUT_RECIPE[verb]))
    from workbench.compose import run_with_recipe

    return run_with_recipe(verb, rest, task_for(verb))


def is_recheck(words: list[str]) -> bool:
    """Whether `evaluate` means a model that is in production, and no recipe's stage."""
    keys = {word.partition("=")[0] for word in words}
    return "model" in keys and "recipe" not in keys


def plain_words(words: list[str], known: dict[str, Any]) -> dict[str, Any]:
    """`key=value` words of a verb that takes no recipe, checked against what it knows."""
    values = dict(known)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals and known.get(key) is False:  # `verify egress`
            equals, text = "=", "true"
        if not equals or key not in known:
            raise RequestError(f"cannot use {word!r} here", where=key, remedy=nearest(key, known))
        kind = type(known[key])
        try:
            values[key] = text.lower() in ("true", "1", "yes") if kind is bool else kind(text)
        except ValueError:
            raise RequestError(f"{text!r} is not a whole number", where=key) from None
    return values


def view_without_recipe(verb: str, values: dict[str, Any]) -> int:
    """The verbs that need no recipe: they look at what is already there, or hand it on."""
    from workbench.views import compare, doctor, review, serve, ui, verify

    extras.require(verb, WITHOUT_RECIPE_EXTRAS.get(verb, ()))
    match verb:
        case "evaluate":
            from workbench.stages import recheck

            return recheck.run(values)
        case "export":
            from workbench.stages import export

            return export.run(values["from"], values["to"], values["key"])
        case "serve":
            return serve.run(values["bundle"], values["engine"], values["key"], values["port"], values["context"])
        case "compare":
            return compare.run(values["runs"], values["metric"], values["experiments"], values["output"], values["out"])
        case "verify":
            return verify.run(values)
        case "review":
            return review.run(values["recipe"], values["to"], values["experiments"], values["uri"])
        case "ui":
            return ui.run(values["experiments"], values["uri"], values["port"])
        case _:
            return doctor.run(values["experiments"], values["uri"], values["output"])


def task_for(verb: str) -> Callable[[Any], int]:
    """What is done with a checked recipe. The views are imported late: a typo must not wait for what they load."""
    if verb not in ("plan", "preview"):
        from workbench.stages import lifecycle

        return lifecycle.run if verb == "train" else partial(lifecycle.run, only=verb)

    def view(recipe: Recipe) -> int:
        if verb == "plan":
            from workbench.views import plan

            return plan.run(recipe)
        from workbench.views import preview

        return preview.run(recipe)

    return view


def usage() -> str:
    """The help text, from the table of verbs."""
    width = max(map(len, VERBS))
    lines = ["python -m workbench VERB recipe=NAME [key=value …]", ""]
    lines += [f"  {verb:<{width}}  {does}" for verb, does in VERBS.items()]
    lines += ["", "  until=STAGE stops early, fresh=true starts over, output=json prints one JSON object,"]
    lines += ["  debug=true shows tracebacks, -m sweeps: method.learning_rate=1e-4,3e-4 -m"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
