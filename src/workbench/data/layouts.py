"""The layouts in which rows are kept, and which of them a source's rows have: by the recipe, or their columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from workbench.data.chat_text import way_of
from workbench.data.column_texts import check_template
from workbench.data.containers import kind
from workbench.data.turns import ROLES
from workbench.errors import RequestError, nearest
from workbench.recipe import Columns, Data

# What the rows of a layout with one answer must have.
PLAIN: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "gemini": ("contents",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "query_response": ("query", "response"),
}
# The columns with a person's word on the answer, true or false; LLaMA-Factory's is called kto_tag.
WORDS = ("label", "kto_tag")
JUDGING = {"kto" if layout == "prompt_completion" and word == "label" else f"{layout}_{word}": (layout, word)
           for word in WORDS for layout in ("prompt_completion", *PLAIN)}  # fmt: skip
# Of two layouts that fit equally many rows the first here is taken: the one that says more.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "swift_preference": ("messages", "rejected_response"),
    "swift_pairs": ("messages", "rejected_messages"),
    "preference": ("chosen", "rejected"),
    **{name: (*PLAIN[layout], word) for name, (layout, word) in JUDGING.items()},
    **PLAIN,
    "chat_text": ("text",),
}
# The layouts that one `data.format` covers.
FORMS = {"preference": ("preference", "openai_preference", "swift_preference", "swift_pairs"), "kto": tuple(JUDGING)}
ONE_COLUMN = ("text", "chat_text")  # `text`, or the column that the recipe assigns as the answer
TABLES = ("columns", "alpaca", "query_response")  # a column each for prompt and answer
# What can be learned of a layout's rows; of any other, its answers.
ANSWERS, PAIRS, JUDGED, TEXT = "answers", "pairs", "judged answers", "text"
MATERIAL = dict.fromkeys(FORMS["preference"], PAIRS) | dict.fromkeys(FORMS["kto"], JUDGED) | {"text": TEXT}
CHOSEN = "chosen"  # the format under which of pairs and judged answers the good ones are learned, and no other
RENDERED = ("<|im_start|>", "<|start_header_id|>", "[INST]", "<start_of_turn>", "<|start|>", "### Response:")


class Census:
    """What is known of the columns of a file's rows: how many rows each layout fits, which columns there are."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.columns: dict[str, None] = {}
        self.fits = dict.fromkeys(LAYOUTS, 0)
        self.whole = set[str]()  # the layouts whose columns some row has
        self.first: Mapping[str, Any] | None = None
        self.rows = 0
        self.add(rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count further rows."""
        if self.first is None and rows:
            self.first = rows[0]
        for row in rows:
            self.columns.update(dict.fromkeys(row))
        for layout in LAYOUTS:
            if layout != "chat_text" or self.fits[layout] == self.rows:  # of those every row must be a chat
                self.fits[layout] += sum(fits_layout(row, layout) for row in rows)
            if layout not in self.whole and any(all(key in row for key in LAYOUTS[layout]) for row in rows):
                self.whole.add(layout)
        self.rows += len(rows)

    def likely(self) -> str | None:
        """The layout that most rows have; None where none has any, or what might be chats have answers beside them."""
        best = max(self.fits, key=lambda layout: self.fits[layout])
        if best == "chat_text" and (self.fits[best] < self.rows or beside_text(self.columns)):
            return None
        return best if self.fits[best] else None


def choose_layout(census: Census, data: Data, name: str) -> str:
    """The layout the recipe names, the mapping, or the one whose columns most rows have."""
    present, fits, rows = list(census.columns), census.fits, census.first is not None
    columns = data.columns
    mapped = {"prompt": columns.prompt or data.prompt, "answer": columns.answer or data.answer}
    listing = f"{name} has: {', '.join(present)}" if present else f"{name} has no rows"
    for role in ("prompt", "answer", "system", "id", "group", "weight", "split"):
        wanted = getattr(columns, role)
        if wanted is not None and wanted not in present:
            raise RequestError(
                f"no column {wanted!r}; {listing}", where=f"data.columns.{role}", remedy=nearest(wanted, present)
            )
    for role in ("prompt", "answer"):
        check_template(getattr(data, role), getattr(columns, role), present, role, listing)
    if data.format in ONE_COLUMN:
        text_column(data, present, listing)
        return data.format
    if data.format == CHOSEN:
        wanted = max(MATERIAL.keys() & LAYOUTS.keys(), key=lambda layout: fits[layout])
        if rows and not fits[wanted]:
            raise RequestError(
                f"rows with a chosen answer have chosen and rejected, or prompt, completion and label; {listing}",
                where="data.format",
                remedy="try auto",
            )
        return wanted
    if data.format not in ("auto", "columns"):
        if any(mapped.values()):
            raise RequestError(
                f"data.columns.prompt and .answer say nothing to the format {data.format!r}",
                where="data.format",
                remedy="remove them, or set data.format=columns",
            )
        wanted = max(FORMS.get(data.format, (data.format,)), key=lambda form: (fits[form], form in census.whole))
        if rows and wanted not in census.whole:
            missing = " and ".join(LAYOUTS[wanted])
            raise RequestError(f"{wanted} rows have {missing}; {listing}", where="data.format", remedy="try auto")
        return wanted
    if all(mapped.values()):
        return "columns"
    likely = census.likely()
    if data.format == "auto" and not any(mapped.values()) and likely:
        return likely
    raise RequestError(
        f"which column is which? {listing}",
        where=" and ".join(f"data.columns.{role}" for role, column in mapped.items() if column is None),
        remedy=which_column(census.first or {}, present, columns),
    )


def fits_layout(row: Mapping[str, Any], layout: str) -> bool:
    """Whether a row has a layout's columns; a word on the answer is true or false, else it is anybody's column."""
    if layout == "chat_text":
        return way_of(row.get("text")) is not None
    judged = layout not in JUDGING or is_word(row.get(JUDGING[layout][1]))
    return judged and all(key in row for key in LAYOUTS[layout])


def is_word(value: object) -> bool:
    """Whether a value is a word on an answer: true or false, also as a CSV writes them."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def which_column(row: Mapping[str, Any], present: Sequence[str], columns: Columns) -> str:
    """What to write into the recipe: the likely columns, or what can be done with the only one there is."""
    if not present:
        return "give it rows"
    if "input_ids" in present:
        return "token ids are another tokenizer's work: give the texts they were made of, as `messages` or in columns"
    if isinstance(row.get("segments"), list):
        return (
            "segments of a text without a template are learned by no method here: give its turns as `messages`, with "
            "weight: 0 for an answer that is context, and the model's own template writes them"
        )
    if elsewhere := conversation_elsewhere(row, present):
        return elsewhere
    if {"completions", "labels"} <= set(present):
        return "labels of single steps are learned by no method here: write a row for each whole answer, judged or not"
    if chat := next((name for name in present if way_of(row.get(name))), None):
        named = "" if chat == "text" else f" data.columns.answer={chat}"
        way = f"{chat} holds whole chats: data.format=chat_text{named} reads their turns and learns the answers"
        labelled = [name for name in present if name != chat and any(word in name.lower() for word in LIKELY_ANSWERS)]
        if not labelled:
            return way
        return f"{way}; columns: {{prompt: {chat}, answer: {labelled[0]}}} learns {labelled[0]} of the chat as a text"
    texts = [name for name in present if name.lower() != "id"]
    if len(texts) == 1 and columns.prompt is None and columns.answer is None:
        column = texts[0]
        begins = str(row.get(column))
        mark = next((mark for mark in RENDERED if mark in begins), None)
        if mark is not None:
            return (
                f"{column} holds whole chats as one model's template writes them ({mark}): give their turns as "
                "`messages`, and the model's own template writes them"
            )
        if isinstance(row.get(column), dict | list):
            return (
                f"{column} is the only column, and holds {kind(row[column])}: give its texts as a prompt and a "
                "completion, or the turns as `messages`, each with its role and content"
            )
        return (
            f"{column} is the only column, and no text is its own answer: add a column with the answers; to learn "
            "the texts themselves (continued pretraining) set data.format=text"
        )
    prompt, answer, beside = guess(present)
    prompt, answer = columns.prompt or prompt, columns.answer or answer
    given = row.get(answer)
    rivals = [] if columns.answer else answers_beside(answer, present)
    if rivals:
        return (
            f"{' and '.join(rivals)} are several answers to one prompt: write the better one into chosen and the other "
            f"into rejected, or name the one that is wanted: data.columns.answer={rivals[0]}"
        )
    if (
        columns.answer is None
        and not {"tools", "functions"} & set(present)
        and is_objects(given)
        and not is_turns(given)
    ):
        return (
            f"{answer} holds a list of objects: write the text that is wanted into a column of its own, or two of them "
            f"into chosen and rejected; to learn the list itself, as JSON writes it: columns: {{prompt: {prompt}, "
            f"answer: {answer}}}"
        )
    lines = [f"columns: {{prompt: {prompt}, answer: {answer}}}"]
    if beside and columns.prompt is None:
        lines = [f'prompt: "{{{beside}}}\\n\\n{{{prompt}}}"', f"columns: {{answer: {answer}}}"]
    note, called = "", "tools" in present or "functions" in present
    if called and answer.lower() in ("answers", "answer", "tool_calls", "calls"):
        note = f"\n    calls of the tools in {answer}, a JSON list, are read as calls"
    elif isinstance(row.get(answer), dict | list):
        note = f"\n    {answer} holds {kind(row[answer])}: as an answer it is learned as JSON writes it"
    several = next((name for name in present if isinstance(row.get(name), list) and name.endswith("s")), None)
    if several and note and not called:
        note += f"; where {several} are several answers to one prompt, write a row for each"
    thoughts = next(
        (name for name in present if name != answer and any(w in name.lower() for w in THOUGHT_WORDS)), None
    )
    if thoughts and not note and columns.answer is None:
        lines = [lines[0].replace(f", answer: {answer}", ""), *lines[1:]]
        lines = [line for line in lines if line != f"columns: {{answer: {answer}}}"]
        lines.append(f'answer: "<think>\\n{{{thoughts}}}\\n</think>\\n\\n{{{answer}}}"')
    shown = "".join(f"\n      {line}" for line in lines)
    return f"say so in the recipe (put your own columns here):\n    data:{shown}{note}"


def conversation_elsewhere(row: Mapping[str, Any], present: Sequence[str]) -> str:
    """What to do where turns lie in a column of another name, deeper in the row, or in rows of their own; else ''."""
    for name in present:
        value = row.get(name)
        if is_turns(value) and {"user", "assistant"} <= {role_of(turn) for turn in value}:
            return f"{name} holds turns: call that column `messages`, and they are read"
        inner = next((key for key in ("messages", "conversations") if isinstance(value, dict) and key in value), None)
        if inner is not None:
            return f"{name} holds a conversation: write its {inner} (and its tools) at the top of each row"
    if role_of(row):
        return "each row is one turn: gather the turns of a conversation into one row, as a list called `messages`"
    return ""


def answers_beside(answer: str, present: Sequence[str]) -> list[str]:
    """The columns that are called as a likely answer is but for one sign at the end; none where it is alone."""
    stem = STEM.fullmatch(answer)
    alike = [name for name in present if stem and (other := STEM.fullmatch(name)) and other[1] == stem[1]]
    return alike if len(alike) > 1 else []


STEM = re.compile(r"(.*?)_?(?:[0-9]|(?<=_)[a-z])")


def is_objects(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a list of objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def is_turns(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a list of turns."""
    return is_objects(value) and all(role_of(turn) for turn in value)


def role_of(turn: Mapping[str, Any]) -> str:
    """The role of a turn in one of the known layouts; else ''."""
    given = turn.get("role", turn.get("from"))
    return ROLES.get(given.strip().lower(), "") if isinstance(given, str) else ""


THOUGHT_WORDS = ("cot", "reasoning", "thought", "thinking", "rationale")
LIKELY_ANSWERS = ("answer", "label", "output", "response", "completion", "target", "category")


def beside_text(columns: Iterable[str]) -> bool:
    """Whether a column beside `text` is called as answers are."""
    return any(word in name.lower() for name in columns if name != "text" for word in LIKELY_ANSWERS)


def guess(columns: Sequence[str]) -> tuple[str, str, str]:
    """A likely prompt, answer, and text beside the prompt ('' for none), only to fill in the lines an error shows."""
    likely_prompts = ("prompt", "question", "instruction", "query", "text", "input", "document", "content")
    besides = ("context", "passage", "document", "article", "background", "input")
    answer = next((c for w in LIKELY_ANSWERS for c in columns if w in c.lower()), columns[-1] if columns else "")
    rest = [c for c in columns if c != answer and c.lower() != "id"] or list(columns)
    # A column of the very name goes before one whose name only holds it: `text` before `context`.
    named = [c for w in likely_prompts for c in rest if w == c.lower()]
    named += [c for w in likely_prompts for c in rest if w in c.lower() and c.lower() not in besides]
    prompt = next(iter(named), rest[0] if rest else "")
    return prompt, answer, next((c for w in besides for c in rest if c.lower() == w and c != prompt), "")


def text_column(data: Data, present: Sequence[str], listing: str) -> str:
    """The column of raw text, or of chats: the one that the recipe assigns, else `text`."""
    column = data.columns.answer or "text"
    if present and column not in present:
        raise RequestError(
            f"no column {column!r} with {'raw text' if data.format == 'text' else 'chats'}; {listing}",
            where="data.format",
            remedy=f"data.columns.answer={present[0]} names it",
        )
    return column
