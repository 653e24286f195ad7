"""translation: the answer is a text in another language that a program will fill in, so its placeholders must survive.

chrF as `generation` computes it, and a hard rule: an answer in which a placeholder, a tag or a mnemonic of the wanted
text is lost, changed, doubled, invented or (where its place is its meaning) moved is invalid, and worth nothing in
`valid_chrf`.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from html.parser import HTMLParser

from workbench.evaluation.scorers import generation
from workbench.evaluation.scorers.scorer import Scorer
from workbench.recipe.schema import Evaluate

METRICS = ["valid_chrf", "chrf", "validity", "exact_match"]
# The first that fits at a place is taken. No space flag: "50 % der" is German, not a conversion.
PLACEHOLDER = re.compile(
    r"""
    (?P<block>  \{\{.*?\}\} | \{%.*?%\} | \{\#.*?\#\} | \$\{[^{}]*\} )        # templates: Django, Jinja, JavaScript
  | (?P<named>  %\([^()]+\)[#0+\-]*\d*(?:\.\d+)?[hlL]?[diouxXeEfFgGcrsa]      # %(name)s
              | %\d+\$[#0+\-]*\d*(?:\.\d+)?[hlL]?[diouxXeEfFgGcrsa]           # %1$s
              | \{[A-Za-z_0-9][^{}\s]*\} )                                    # {name}, {0}, {price:.2f}
  | (?P<escape> %% )
  | (?P<placed> %[#0+\-]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[hlL]?[diouxXeEfFgGcrsa](?![^\W\d_])  # %s
              | \{(?:[!:][^{}]*)?\} )                                      # {}
    """,
    re.VERBOSE | re.DOTALL,
)
ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
MARKUP = {"&lt;", "&gt;", "&amp;"}  # without them the text would become markup; other entities are only letters
MNEMONIC = re.compile(r"(?<!&)&(?:&&)*(?=[^\W_])")  # &File; && is a plain ampersand
MOST_TAGS = 300
READ = {"title", "alt", "placeholder", "aria-label"}  # attributes that people read, so that they are translated


def score(evaluate: Evaluate, expected: str, answer: str) -> dict[str, float]:
    """chrF where the answer is valid (else 0), chrF of any answer, validity, and equality after stripping."""
    near, _, equal, _ = generation.compared(expected.strip(), answer.strip())
    valid = float(bool(answer.strip() or not expected.strip()) and kept(expected, answer))
    return {"valid_chrf": near * valid, "chrf": near, "validity": valid, "exact_match": equal}


def kept(source: str, translated: str) -> bool:
    """Whether a translation has every placeholder of its source, and no other."""
    return marks(source) == marks(translated)


Marks = tuple[Counter[str], tuple[str, ...], tuple[str, ...]]


@lru_cache(maxsize=65_536)
def marks(text: str) -> Marks:
    """(what may stand anywhere and how often, conversions without a name in their order, tags as they nest).

    Order matters where place is meaning: the second `%s` gets the second value. Tags are held by their nesting: a
    closing tag before its opening one makes other markup, while two pairs side by side may change places.
    """
    anywhere: Counter[str] = Counter()
    placed: list[str] = []
    for match in PLACEHOLDER.finditer(text):
        if match.lastgroup == "placed":
            placed.append(match[0])
        else:
            anywhere[match[0]] += 1
    plain = PLACEHOLDER.sub("\0", text)
    anywhere.update(entity for entity in ENTITY.findall(plain) if entity in MARKUP)
    anywhere["&"] += len(MNEMONIC.findall(ENTITY.sub(" ", plain)))
    if text.count("<") > MOST_TAGS:  # HTMLParser's time grows with the square of what never closes
        return +anywhere, tuple(placed), (text,)
    tags = Tags()
    tags.feed(text)
    tags.close()
    return +anywhere, tuple(placed), tuple(sorted(tags.paths))


class Tags(HTMLParser):
    """The tags of a text, each with those it stands in; one that closes nothing is kept as it is."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.open: list[str] = []
        self.paths: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<a href="…">`: what people read of its attributes may be translated, but not left out."""
        held = sorted(f"{name}" if name in READ else f"{name}={value}" for name, value in attrs)
        self.paths.append("/".join([*self.open, " ".join([tag, *held])]))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """`</a>`: closes the innermost tag of that name."""
        self.paths.append("/".join([*self.open, f"end of {tag}"]))
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<br/>` is no other than `<br>`."""
        self.handle_starttag(tag, attrs)
        self.open.pop()


SCORER = Scorer(lambda evaluate: METRICS, score)
