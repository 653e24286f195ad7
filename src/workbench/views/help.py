"""Help in the words of this house: of all verbs, of one, of a section of the recipe, and for a shell's completion."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.errors import RequestError, nearest
from workbench.pages.terminal import results
from workbench.recipe import Quantize, Recipe
from workbench.recipe.table import TOP, described, type_name
from workbench.views.verbs import VERBS, Verb

CODES = {
    0: "done",
    1: "the work failed",
    2: "the request is wrong: a key, a value, a file",
    3: "",
    130: "interrupted; the same command goes on (143 by SIGTERM)",
}
ASKS = ("-h", "--help", "help")


def usage() -> str:
    """The help text of the whole: every verb with what it does."""
    width = max(map(len, VERBS))
    room = 80 - width - 4
    lines = ["workbench VERB RECIPE [key=value …]    (or: python -m workbench VERB …)", ""]
    for verb, about in VERBS.items():
        first, *rest = textwrap.wrap(about.does, room)
        lines += [f"  {verb:<{width}}  {first}", *(" " * (width + 4) + line for line in rest)]
    return "\n".join(
        [
            *lines,
            "",
            "  VERB --help tells a verb's keys; train --help method those of a section.",
            "  until=STAGE stops early, fresh=true starts over, output=json prints JSON,",
            "  debug=true shows tracebacks, -m sweeps: method.learning_rate=1e-4,3e-4 -m",
        ]
    )


def run(verb: str, topics: Sequence[str]) -> int:
    """Help of a verb; with topics, of sections of the recipe or of single keys."""
    screen = results()
    if topics:
        for topic in topics:
            print_topic(screen, topic)
        return 0
    print_verb(screen, verb, VERBS[verb])
    return 0


def print_verb(screen: Console, name: str, verb: Verb) -> None:
    """What it does, its words, its sections of the recipe, examples, exit codes."""
    first = " RECIPE" if verb.recipe else f" [{verb.first.upper()}]" if verb.first else ""
    head = f"workbench {name}{first} [key=value …]"
    screen.print(Text(head, style="bold"))
    screen.print(f"  {verb.does}")
    if verb.words:
        screen.print(f"\nits keys{' beside a recipe’s, or without one' if verb.recipe else ''}:")
        rows = ((key, plain_default(word.default), word.meaning) for key, word in verb.words.items())
        screen.print(keys_table(rows))
    if verb.recipe:
        named = [*verb.sections, *(section for section in sections() if section not in verb.sections)]
        screen.print(
            "\na recipe's keys, by section (… --help SECTION lists one; those that matter most here come first):"
        )
        screen.print(keys_table((section, "", meaning_of(section)) for section in named))
    screen.print("\nexamples:")
    for example in verb.examples:
        screen.print(f"  workbench {example}", soft_wrap=True)
    codes = {code: verb.refused if code == 3 else words for code, words in CODES.items() if code != 3 or verb.refused}
    screen.print("\nexit codes:\n" + "\n".join(f"  {code:<4} {words}" for code, words in codes.items()))


def print_topic(screen: Console, topic: str) -> None:
    """The keys of one section of the recipe, or of what begins with this key."""
    keys = {path: row for section in sections() for path, row in keys_of(section).items()}
    chosen = keys_of(topic) if topic in sections() else {k: v for k, v in keys.items() if k.startswith(topic)}
    if not chosen:
        raise RequestError(
            f"there is no help on {topic!r}", where="--help", remedy=nearest(topic, [*sections(), *keys])
        )
    screen.print(Text(topic, style="bold") + Text(f"  {meaning_of(topic)}" if topic in sections() else ""))
    screen.print(keys_table((path, default, meaning) for path, (default, meaning) in chosen.items()))


def keys_table(rows: Iterable[tuple[str, str, str]]) -> Table:
    """Key, default and meaning; the meaning takes what room there is."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold", style="dim", max_width=24)
    table.add_column(overflow="fold")
    for key, default, meaning in rows:
        table.add_row("  " + key, default, meaning)
    return table


def plain_default(value: object) -> str:
    """A default as it is typed; nothing for an empty one."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def sections() -> dict[str, type]:
    """The recipe's sections with the dataclasses that hold their keys; `recipe` has those without a section."""
    kinds = typing.get_type_hints(Recipe)
    held = {spec.name: kinds[spec.name] for spec in dataclasses.fields(Recipe)}
    return {TOP: Recipe} | {
        name: Quantize if name == "quantize" else kind
        for name, kind in held.items()
        if name == "quantize" or dataclasses.is_dataclass(kind)
    }


def meaning_of(section: str) -> str:
    """A section's own line."""
    if section == TOP:
        return "What is said once for the whole recipe."
    return (sections()[section].__doc__ or "").strip().split("\n")[0]


def keys_of(section: str) -> dict[str, tuple[str, str]]:
    """(default, meaning with type, unit and limits) of every key of a section, by its path."""
    prefix = "" if section == TOP else "quantize.<name>." if section == "quantize" else f"{section}."
    return dict(rows_of(sections()[section], prefix, nested=section != TOP))


def rows_of(cls: type, prefix: str, *, nested: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    """The keys of one dataclass, those of inner ones with their path."""
    kinds = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        kind = kinds[spec.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if nested:
                yield from rows_of(kind, f"{prefix}{spec.name}.", nested=True)
        elif spec.metadata:
            default = getattr(cls(), spec.name)
            shown = "null" if default is None else plain_default(default)
            meaning = described(spec.metadata) + ("" if spec.metadata["choices"] else f" [{type_name(kind)}]")
            yield prefix + spec.name, ("" if shown in ("[]", "{}") else shown, meaning)


# Completion: one script that holds all the words, so that pressing the key starts no Python.

PLAIN_WORD = re.compile(r"\w[\w.+-]*")


def completion(shell: str, nouns: Mapping[str, Sequence[str]], recipes: Sequence[str]) -> str:
    """A script for `bash` or `zsh`: verbs first, then keys with `=`, then the nouns of a group or the named choices.

    A shell runs what it is handed: of the names of files and folders only those that no shell reads as more are in it.
    """
    if shell not in ("bash", "zsh"):
        raise RequestError(f"no completion for {shell!r}", where="shell", remedy="completion bash, or completion zsh")
    keys = {path: row for section in sections() for path, row in keys_of(section).items() if "<" not in path}
    recipes = list(filter(PLAIN_WORD.fullmatch, recipes))
    plain = {group: list(filter(PLAIN_WORD.fullmatch, names)) for group, names in nouns.items()}
    values = {f"{group}=": names for group, names in plain.items() if PLAIN_WORD.fullmatch(group)}
    values |= {f"{path}=": list(choices) for path, choices in choices_of().items()}
    values |= {
        f"{key}=": list(filter(None, w.choices)) for v in VERBS.values() for key, w in v.words.items() if w.choices
    }
    values["recipe="] = list(recipes)
    every = sorted({f"{key}=" for key in keys} | set(values))
    lines = []
    for name, verb in VERBS.items():
        first = verb.words[verb.first].choices if verb.first else ()  # that word stands without its key, too
        own = [f"{key}=" for key in verb.words] + list(filter(None, first))
        words = sorted({*own, *(every if verb.recipe else ()), *(recipes if verb.recipe else ()), "--help"})
        lines.append(f"    {name}) words='{' '.join(words)}' ;;")
    cases = "\n".join(f"      {key}*) values='{' '.join(names)}' ;;" for key, names in sorted(values.items()) if names)
    script = SCRIPT.replace("@VERBS@", " ".join(VERBS)).replace("@WORDS@", "\n".join(lines)).replace("@VALUES@", cases)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script


def choices_of() -> dict[str, tuple[str, ...]]:
    """The keys whose values are a closed set, or yes and no."""
    closed: dict[str, tuple[str, ...]] = {}

    def look(cls: type, prefix: str) -> None:
        kinds = typing.get_type_hints(cls)
        for spec in dataclasses.fields(cls):
            kind = kinds[spec.name]
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                look(kind, f"{prefix}{spec.name}.")
            elif spec.metadata.get("choices"):
                closed[prefix + spec.name] = spec.metadata["choices"]
            elif kind is bool:
                closed[prefix + spec.name] = ("true", "false")

    look(Recipe, "")
    return closed


SCRIPT = """\
_workbench() {
  local line="${COMP_LINE:0:$COMP_POINT}" words values cur head
  local -a typed
  read -r -a typed <<< "$line" 2>/dev/null || typed=(${=line})
  cur="${line##* }"
  COMPREPLY=()
  local verb="${COMP_WORDS[1]}"
  if [ "$COMP_CWORD" -le 1 ]; then
    COMPREPLY=($(compgen -W '@VERBS@' -- "$cur"))
    return
  fi
  case "$cur" in
    *=*)
      head="${cur%%=*}="
      case "$cur" in
@VALUES@
        *) values='' ;;
      esac
      if [ -z "$values" ]; then COMPREPLY=($(compgen -f -- "${cur#*=}")); return; fi
      COMPREPLY=($(compgen -W "$values" -- "${cur#*=}"))
      # Where = parts words (bash), the value alone is replaced; else the whole word is.
      case "$COMP_WORDBREAKS" in *=*) ;; *) COMPREPLY=("${COMPREPLY[@]/#/$head}") ;; esac
      return ;;
  esac
  case "$verb" in
@WORDS@
    *) words='' ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -o default -F _workbench workbench  # where no word fits, a file may: a recipe, or rows
"""
