"""The kind pretrain: raw text is learned as it stands, and held-out documents tell whether it is known better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.data.chat import recipe_tokenizer
from workbench.data.raw_text import document_row
from workbench.errors import RequestError
from workbench.recipe.methods import TEXT, Kind
from workbench.records import Example
from workbench.stages.train.task import Start, Task, group_of, job_of

if TYPE_CHECKING:
    from workbench.training.documents import Document
    from workbench.training.job import Job


def pretrain(task: Task, start: Start, out: Path) -> Job:
    """The documents that the recipe names, else its own rows, where those are raw text."""
    from workbench.stages.rows import documents
    from workbench.training.documents import on_documents

    recipe = task.recipe
    if recipe.data.documents:
        learned, judges = documents(recipe, task.run)
    else:
        learned, judges = list(task.examples), list(task.judges)
    refuse_prompts([*learned, *judges])
    judges = judges[: recipe.method.validation_rows]
    train, held = tokens_of(task, learned), tokens_of(task, judges)
    job = on_documents(job_of(task, start, out, [], list(map(group_of, judges))), train, held)
    task.event(
        "said",
        text=f"{sum(len(d.ids) for d in train):,} tokens in {len(train):,} documents, packed into {len(job.rows):,} "
        f"rows of at most {recipe.method.max_length:,}; {len(held):,} documents are held out",
    )
    return job


KINDS = [
    Kind("pretrain", pretrain, answers=False, own=True, documents=True, material=frozenset({TEXT}), alone=True),
]


def refuse_prompts(examples: Sequence[Example]) -> None:
    """RequestError for a row that is a conversation: it has a template, a prompt, and an answer to learn."""
    for example in examples:
        if example.prompt:
            raise RequestError(
                "the row is a conversation, not raw text",
                where=example.where or example.id,
                remedy="data.documents=FOLDER beside the rows of the task, or method.learn=[sft]",
            )


def tokens_of(task: Task, examples: Sequence[Example]) -> list[Document]:
    """Each document's name and tokens."""
    from workbench.training.documents import Document

    tokenizer = recipe_tokenizer(task.base, task.recipe.model, task.recipe.method)
    rows = [document_row(example, tokenizer) for example in examples]
    return [Document(row.id, row.input_ids) for row in rows]
