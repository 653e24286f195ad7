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
from workbench.views import verbs

if TYPE_CHECKING:
    from workbench.recipe import Recipe

# What each verb does; and the words of those that can do without a recipe, with their defaults.
VERBS: dict[str, str] = {name: verb.does for name, verb in verbs.VERBS.items()}
WITHOUT_RECIPE: dict[str, dict[str, Any]] = {
    name: {key: word.default for key, word in verb.words.items()} for name, verb in verbs.VERBS.items() if verb.words
}
# What these verbs cannot do without; an engine that `verify` or `serve` starts asks for its own.
WITHOUT_RECIPE_EXTRAS = {"evaluate": ("train",), "ui": ("train",), "chat": ("train",)}
ASKS = ("-h", "--help", "help")
BESIDE_RECIPE = ("arm", "beside", "system", "max_new_tokens", "engine")  # what `chat` takes beside a recipe's keys


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
    """Keep libraries from phoning home or talking over the screen; have torch be quick here. The user's word wins."""
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
    # A thread that waits for another sleeps; it would keep a core that a neighbour needs, and training waits for both.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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
    if not words or (words[0] in ASKS and not words[1:]):
        from workbench.views import help

        print(help.usage())
        return errors.OK
    if words[0] == "help":
        words = [words[1], "--help", *words[2:]]
    verb, rest = words[0], words[1:]
    if verb == "--version":
        from workbench import __version__

        print(__version__)
        return errors.OK
    if verb not in VERBS:
        raise no_such_verb(verb)
    if {"-h", "--help"} & set(rest):
        from workbench.views import help

        return help.run(verb, topics_of(rest))
    if verb in WITHOUT_RECIPE and not needs_recipe(verb, rest):
        return view_without_recipe(verb, plain_words(rest, WITHOUT_RECIPE[verb], verbs.VERBS[verb].first))
    own: dict[str, Any] = {}
    if verb == "chat":
        keys = [word for word in rest if word.partition("=")[0] in BESIDE_RECIPE]
        own, rest = plain_words(keys, WITHOUT_RECIPE[verb]), [word for word in rest if word not in keys]
    from workbench.compose import run_with_recipe

    return run_with_recipe(verb, rest, task_for(verb, own))


def no_such_verb(verb: str) -> RequestError:
    """What a word in the verb's place may have been meant to be: another tool's verb, a recipe, a slip."""
    from workbench.recipe.foreign import VERBS as THEIRS

    if verb.endswith((".yaml", ".yml")) or "=" in verb:
        return RequestError(f"no verb before {verb!r}", remedy=f"say what to do with it: workbench train {verb}")
    if verb.startswith("-"):
        return RequestError(f"no verb before {verb!r}", remedy="workbench VERB …; workbench --help lists the verbs")
    if verb.lower() in THEIRS:
        return RequestError(f"no such verb {verb!r}", remedy=f"that is {THEIRS[verb.lower()]!r} here")
    return RequestError(f"no such verb {verb!r}", remedy=nearest(verb.lower(), VERBS))


def topics_of(words: list[str]) -> list[str]:
    """What of the recipe help is asked about: sections and keys; a recipe's own words are no question."""
    return [word.partition("=")[0] for word in words[words_before_help(words) + 1 :] if not word.startswith("-")]


def words_before_help(words: list[str]) -> int:
    """The place of the word that asks for help."""
    return next(i for i, word in enumerate(words) if word in ASKS)


def needs_recipe(verb: str, words: list[str]) -> bool:
    """Whether a verb works on a recipe here: `evaluate` and `chat` can also mean a model that is there already."""
    return verbs.VERBS[verb].recipe and not (is_recheck(words) if verb == "evaluate" else is_shipped(words))


def is_shipped(words: list[str]) -> bool:
    """Whether `chat` means a bundle or a registered model, and no recipe's run."""
    named = any(("=" not in word and not word.startswith("-")) or word.startswith("recipe=") for word in words)
    return not named


def is_recheck(words: list[str]) -> bool:
    """Whether `evaluate` means a model that is in production, and no recipe's stage."""
    keys = {word.partition("=")[0] for word in words}
    named = "recipe" in keys or any("=" not in word and not word.startswith("-") for word in words)
    return "model" in keys and not named


def plain_words(words: list[str], known: dict[str, Any], first: str = "") -> dict[str, Any]:
    """`key=value` words of a verb that takes no recipe, checked against what it knows; one without `=` is `first`'s."""
    values = dict(known)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals and known.get(key) is False:  # `verify egress`
            equals, text = "=", "true"
        if not equals and first and not word.startswith("-") and values[first] == known[first]:
            key, equals, text = first, "=", word
        if not equals or key not in known:
            raise RequestError(f"cannot use {word!r} here", where=key, remedy=nearest(key.lstrip("-"), known))
        kind = type(known[key])
        try:
            values[key] = text.lower() in ("true", "1", "yes") if kind is bool else kind(text)
        except ValueError:
            raise RequestError(f"{text!r} is not a whole number", where=key, remedy=f"{key}={known[key]}") from None
        refuse_choice(key, text)
    return values


def refuse_choice(key: str, text: str) -> None:
    """A word of a closed set must be one of it."""
    for verb in verbs.VERBS.values():
        choices = verb.words[key].choices if key in verb.words else ()
        if choices and text not in choices:
            raise RequestError(f"{text!r} is not a choice", where=key, remedy=nearest(text, filter(None, choices)))


def view_without_recipe(verb: str, values: dict[str, Any]) -> int:
    """The verbs that need no recipe: they look at what is already there, or hand it on."""
    extras.require(verb, WITHOUT_RECIPE_EXTRAS.get(verb, ()))
    match verb:
        case "evaluate":
            from workbench.stages import recheck

            return recheck.run(values)
        case "export":
            from workbench.stages import export

            return export.run(values["from"], values["to"], values["key"], values["experiments"], values["uri"])
        case "serve":
            from workbench.views import serve

            return serve.run(values["bundle"], values["engine"], values["key"], values["port"], values["context"])
        case "compare":
            from workbench.views import compare

            return compare.run(values["runs"], values["metric"], values["experiments"], values["output"], values["out"])
        case "verify":
            from workbench.views import verify

            return verify.run(values)
        case "review":
            from workbench.views import review

            return review.run(values["recipe"], values["to"], values["experiments"], values["uri"])
        case "ui":
            from workbench.views import ui

            return ui.run(values["experiments"], values["uri"], values["port"])
        case "list":
            from workbench.compose import options, recipes
            from workbench.views import list as listing

            return listing.run(values["what"], recipes(), options, values["experiments"], values["output"])
        case "init":
            from workbench.compose import composed_file, options
            from workbench.views import init

            return init.run(values, options("model"), composed_file)
        case "chat":
            from workbench.views import talk

            return talk.run(values)
        case "completion":
            from workbench.compose import groups, options, recipes
            from workbench.views import help

            print(help.completion(values["shell"], {group: options(group) for group in groups()}, list(recipes())))
            return errors.OK
        case _:
            from workbench.views import doctor

            return doctor.run(values["experiments"], values["uri"], values["output"])


def task_for(verb: str, own: dict[str, Any]) -> Callable[[Any], int]:
    """What is done with a checked recipe. The views are imported late: a typo must not wait for what they load."""
    if verb not in ("plan", "preview", "chat", "cost"):
        from workbench.stages import lifecycle

        return lifecycle.run if verb == "train" else partial(lifecycle.run, only=verb)

    def view(recipe: Recipe) -> int:
        if verb == "plan":
            from workbench.views import plan

            return plan.run(recipe)
        if verb == "chat":
            from workbench.views import talk

            return talk.run(own, recipe)
        if verb == "cost":
            from workbench.views import cost

            return cost.run(recipe)
        from workbench.views import preview

        return preview.run(recipe)

    return view


if __name__ == "__main__":
    sys.exit(main())
