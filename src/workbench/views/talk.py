"""A word with the student: at once after training, in its engine, beside its base if wanted, proven or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import errors, extras
from workbench.bundles.checks import static_checks
from workbench.bundles.manifest import read_manifest
from workbench.bundles.prove import HERE, choose_engine, refuse_failed, trusted_key
from workbench.command import next_command
from workbench.compress.format_check import really_quantized
from workbench.data.chat import load_tokenizer
from workbench.engines import Ask, transformers_engine
from workbench.engines.served import served_engine
from workbench.errors import RequestError, WorkbenchError, nearest
from workbench.files import read_json, temporary_folder
from workbench.pages.terminal import print_json, results
from workbench.recipe import Recipe, sources_of, weights_of
from workbench.records import Message
from workbench.runs import Run, find_run, run_digest
from workbench.screen import SafeConsole
from workbench.sources import cache_folder, content_digests, model_folder
from workbench.tracking import resolve_source
from workbench.training.shrink import model_under, shrunk

SCREEN = SafeConsole(stderr=True, highlight=False, markup=False)
MODELS = ("models:/", "mlflow:models:/")
NEW, LEAVE = "/new", ("/bye", "/exit", "/quit")


@dataclass(frozen=True)
class Speaker:
    """Who answers: its name, and the function that asks it."""

    name: str
    ask: Ask


def run(words: Mapping[str, Any], recipe: Recipe | None = None) -> int:
    """Read what a person says, line by line, and answer; ends with the lines."""
    extras.require("chat", ("train",))
    with ExitStack() as stack:
        if recipe is not None:
            speakers, facts = stack.enter_context(of_recipe(recipe, words))
            system = words["system"] or recipe.data.system or ""
        else:
            speakers, facts = stack.enter_context(of_bundle(words))
            system = words["system"]
        SCREEN.print(facts, soft_wrap=True)
        as_json = (recipe.output if recipe is not None else words["output"]) == "json"
        talk(speakers, system, words["max_new_tokens"], as_json)
    return errors.OK


def talk(speakers: Sequence[Speaker], system: str, longest: int, as_json: bool) -> None:
    """The conversation: each speaker has its own, and hears what it has said itself."""
    terminal = sys.stdin.isatty()
    if terminal:
        SCREEN.print(f"{NEW} begins anew, {LEAVE[0]} or Ctrl-D ends", style="dim")
    start = (Message("system", system),) if system else ()
    talks: dict[str, tuple[Message, ...]] = {}
    screen = results()
    for line in lines(terminal):
        if line in LEAVE:
            return
        if line == NEW:
            talks = {}
            continue
        for speaker in speakers:
            heard = (*talks.get(speaker.name, start), Message("user", line))
            ((_, answer),) = speaker.ask([heard], longest)
            talks[speaker.name] = (*heard, Message("assistant", answer.text))
            if as_json:
                print_json(
                    {"asked": line, "who": speaker.name, "answer": answer.text, "tokens": answer.tokens_out,
                     "seconds": round(answer.seconds, 3), "cut_short": answer.finish == "length"}
                )  # fmt: skip
                continue
            name = f"{speaker.name}: " if len(speakers) > 1 or terminal else ""
            cut = "" if answer.finish == "stop" else "  […cut at max_new_tokens]"
            screen.print(f"{name}{answer.text}{cut}", soft_wrap=True)


def lines(terminal: bool) -> Iterator[str]:
    """What is said: from the keyboard with a prompt, else every line of standard input that holds something."""
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            return
        if not terminal and not line:
            return
        if line.strip():
            yield line.strip()


@contextmanager
def of_recipe(recipe: Recipe, words: Mapping[str, Any]) -> Iterator[tuple[list[Speaker], str]]:
    """The student of the recipe's run, or one of its formats; its base too where that is wanted."""
    run = run_of(recipe)
    arm = words["arm"]
    base = model_folder(recipe.model.source, recipe.model.sha256)
    template = load_tokenizer(base, recipe.model.chat_template).chat_template
    shown = template if isinstance(template, str) else None
    options: dict[str, Any] = {"device": recipe.launch.device, "threads": recipe.launch.threads}
    with ExitStack() as stack:
        speakers = []
        if words["beside"] == "base":
            speakers.append(
                Speaker("base", stack.enter_context(transformers_engine(base, chat_template=shown, **options)))
            )
        if arm != "student":
            folder = format_of(recipe, run, arm)
            engine = choose_engine(folder, recipe.quantize[arm].format, words["engine"])
            ask = open_folder(folder, engine, **options)
        elif run.done("merge"):
            ask = transformers_engine(run.folder / "merge" / "model", **options)
        elif recipe.method.kind == "full":
            ask = transformers_engine(run.folder / "train" / "model", **options)
        else:
            start, adapter = shrunk(base, recipe.model.shrink), run.folder / "train" / "adapter"
            ask = transformers_engine(start, adapter_dir=adapter, chat_template=shown, **options)
        speakers.append(Speaker(arm, stack.enter_context(ask)))
        yield speakers, f"{recipe.name}/{run.digest}, {arm}: {standing(run, arm)}"


def run_of(recipe: Recipe) -> Run:
    """The recipe's run, trained; RequestError with the command that trains it where it is not."""
    digest = run_digest(weights_of(recipe), content_digests(sources_of(recipe)))
    run = find_run(Path(recipe.launch.experiments).resolve(), recipe.name, digest)
    if run is None or run.done("train") is None:
        raise RequestError(
            "there is no student to talk to yet",
            where=recipe.name,
            remedy=next_command("train", recipe.name, "until=train"),
        )
    return run


def format_of(recipe: Recipe, run: Run, arm: str) -> Path:
    """The folder of a format that is made."""
    if arm not in recipe.quantize:
        raise RequestError(
            f"the recipe has no arm {arm!r}", where="arm", remedy=nearest(arm, ["student", *recipe.quantize])
        )
    if run.done(f"quantize/{arm}") is None:
        raise RequestError(
            f"{arm} is not made yet", where="arm", remedy=next_command("train", recipe.name, "until=quantize")
        )
    return run.folder / "quantize" / arm


def standing(run: Run, arm: str) -> str:
    """What is known of it: proven, refused with the gate's own sentence, or not proven at all."""
    path = run.folder / "evaluate" / "report.json"
    if run.done("evaluate") is None or not path.is_file():
        return "not proven (no verdict yet)"
    gate = read_json(path)["gate"]
    if arm in gate["shipped"]:
        return ("shipped against the gate, on a person's word. " if gate.get("overridden") else "proven. ") + gate[
            "sentence"
        ]
    if arm not in gate["refused"]:
        return "not proven (it was made after the verdict)"
    return f"not proven: the gate refused it. {gate['sentence']}"


@contextmanager
def of_bundle(words: Mapping[str, Any]) -> Iterator[tuple[list[Speaker], str]]:
    """A bundle, or a registered model's, once its bytes have been checked."""
    source = words["bundle"] or words["model"]
    if words["beside"]:
        raise RequestError("a bundle does not carry its base", where="beside", remedy="chat recipe=NAME beside=base")
    if words["arm"] != "student":
        raise RequestError("a bundle is one arm", where="arm", remedy="name the other arm's bundle")
    if not source:
        raise RequestError(
            "whom to talk to?", where="chat", remedy="chat recipe=NAME, bundle=FOLDER or model=models:/NAME@champion"
        )
    with temporary_folder(cache_folder() / "fetched") as temporary, ExitStack() as stack:
        folder = Path(source).expanduser()
        if source.startswith(MODELS):
            key, place = trusted_key(words["key"]), Path(words["experiments"])
            name = f"mlflow:{source.removeprefix('mlflow:')}"
            folder = resolve_source(name, temporary / "bundle", key, place, words["uri"])
        manifest = read_manifest(folder)
        checks = static_checks(folder, public_key=trusted_key(words["key"]), really_quantized=really_quantized)
        refuse_failed(checks, source)
        engine = choose_engine(folder, manifest["format"], words["engine"])
        base = model_under(manifest["base"]) if manifest["kind"] == "adapter" else None
        ask = stack.enter_context(open_folder(folder, engine, base=base))
        yield [Speaker(manifest["name"], ask)], f"{manifest['name']} ({manifest['format']}) in {engine}: proven, signed"


def open_folder(
    folder: Path, engine: str, *, base: Path | None = None, device: str = "auto", threads: int | None = None
) -> AbstractContextManager[Ask]:
    """The engine on a folder; transformers where no server is needed."""
    if engine == HERE:
        if base is not None:
            return transformers_engine(base, adapter_dir=folder, device=device, threads=threads)
        return transformers_engine(folder, device=device, threads=threads)
    if base is not None:
        raise WorkbenchError(
            f"{engine} is not asked an unmerged adapter here", where="engine", remedy="engine=transformers"
        )
    return served_engine(folder, engine, parallel=1, threads=threads)
