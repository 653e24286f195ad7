"""A tiny project whose student is sure of what it knows and unsure of the rest, for tests of a route. No test is here.

Requests for `stock`, in letters of their own, are always answered with yes; of those for a `sale` nobody can tell from
the words. A student that has learned both is sure of the first kind, and right, and unsure of the second.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

ROWS = {"train": 160, "validation": 240, "test": 160}
LETTERS = {"stock": ("bdfgt", "ae"), "sale": ("klmnrsvz", "iou")}
RECIPE = """\
defaults: [workbench, {{evaluate: exact_match}}, _self_]
model: {{source: "dir:{model}", licence: Apache-2.0}}
data:
  {{train: "file:train.jsonl", validation: "file:validation.jsonl", test: "file:test.jsonl", format: columns,
   columns: {{prompt: text, answer: answer, id: id}}, privacy: public}}
method:
  {{kind: full, learning_rate: 1e-2, epochs: 100, max_steps: 50, batch_size: 16, evaluations: 1, sample_answers: 0}}
evaluate:
  {{few_shot: 0, max_new_tokens: 4, general: null, harmful: null, energy: false, champion: false, resamples: 1000}}
gate: {{min_rows: 5, baseline: base, duties: false, memorised: null, slice_margin: null}}
bundle: {{parity_rows: 4, most_kl: 1.0, least_agreement: 0.0, score_margin: 1.0}}
tracking: {{uri: "http://127.0.0.1:9"}}
route:
  kind: cascade
  teacher: {{api: openai, model: gpt-route, base_url: "{url}", key_variable: TEACHER_KEY, route: own, family: mistral,
            budget_usd: 100.0, max_new_tokens: 64, price: {{input_mtok: 1.0, output_mtok: 4.0}}}}
"""


def new_rows(part: str) -> list[dict[str, str]]:
    """Rows of words that nobody has seen; every other one is a sale."""
    draw = random.Random(part)

    def word(kind: str) -> str:
        first, then = LETTERS[kind]
        return "".join(draw.choice(first) + draw.choice(then) for _ in range(3))

    rows = []
    for number in range(ROWS[part]):
        kind = ("stock", "sale")[number % 2]
        answer = "yes" if kind == "stock" else draw.choice(["yes", "no"])
        text = f"{kind} {' '.join(word(kind) for _ in range(4))}"
        rows.append({"id": f"{part}-{number}", "text": text, "answer": answer})
    return rows


def teacher_answers(right: float = 0.95) -> list[list[str]]:
    """What a teacher says who is right so often: each row's own words, and the answer to it."""
    draw = random.Random(3)
    flipped = {"yes": "no", "no": "yes"}
    return [
        [row["text"], row["answer"] if draw.random() < right else flipped[row["answer"]]]
        for part in ("validation", "test")
        for row in new_rows(part)
    ]


def new_route_project(folder: Path, model: Path, url: str) -> Path:
    """Write the rows and `mine.yaml`, whose route goes to the teacher at `url`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ROWS:
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new_rows(part)))
    (folder / "mine.yaml").write_text(RECIPE.format(model=model, url=url))
    return folder
