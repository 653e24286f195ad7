"""The translation scorer: chrF, and the hard rule that what a program fills in must be kept."""

from __future__ import annotations

import pytest

from workbench.evaluation import scorers
from workbench.evaluation.scorers.translation import kept
from workbench.recipe.schema import Evaluate

EVALUATE = Evaluate(scorer="translation")

KEPT = [
    ("Delete %(title)s", "%(title)s löschen"),
    ("%(a)s of %(b)d", "%(b)d, davon %(a)s"),
    ("%s of %s", "%s von %s"),
    ("%1$s of %2$s", "%2$s hat %1$s"),
    ("{name}, {0} and {price:.2f}", "{price:.2f}, {0} und {name}"),
    ("Hello {{ user.name|title }}", "{{ user.name|title }}, hallo"),
    ("{% if x %}yes{% endif %}", "{% if x %}ja{% endif %}"),
    ("Total: ${total}", "Summe: ${total}"),
    ("100%% of %s", "100%% von %s"),
    ("50% of it", "50 % der Sache"),
    ("100% done", "zu 100% fertig"),
    ("<b>Save</b> and <i>go</i>", "<i>Gehen</i> und <b>speichern</b>"),
    ("one<br>two", "eins<br/>zwei"),
    ('<a href="%(url)s" title="Open">here</a>', '<a title="Öffnen" href="%(url)s">hier</a>'),
    ("&File", "&Datei"),
    ("Save &As", "Speichern &unter"),
    ("Save & close", "Sichern und schließen"),
    ("R&&D", "F&&E"),
    ("a &lt; b", "a &lt; b"),
    ("Wait&hellip;", "Warten…"),
    ("2 < 3", "2 < 3"),
    ("plain", "einfach"),
    ("{a} and {", "{a} und {"),
]
LOST = {
    "lost": ("Delete %(title)s", "Titel löschen"),
    "translated": ("Delete %(title)s", "%(titel)s löschen"),
    "other case": ("Delete %(title)s", "%(Title)s löschen"),
    "other type": ("%(count)d items", "%(count)s Einträge"),
    "type forgotten": ("%(count)d items", "%(count) Einträge"),
    "blank within": ("Delete %(title)s", "% (title)s löschen"),
    "doubled": ("Delete %(title)s", "%(title)s: %(title)s löschen"),
    "invented": ("Delete it", "%(title)s löschen"),
    "wide percent sign": ("Delete %s", "\uff05s löschen"),
    "moved, where its place is its meaning": ("%s has %d rows", "%d Zeilen hat %s"),
    "escape lost": ("100%% of %s", "100% von %s"),
    "escape invented": ("100 of %s", "100%% von %s"),
    "braces lost": ("Hello {name}", "Hallo name"),
    "braces doubled": ("Hello {name}", "Hallo {{name}}"),
    "format lost": ("{price:.2f} €", "{price} €"),
    "bare braces lost": ("{} of {}", "{} von"),
    "filter translated": ("{{ name|title }}", "{{ name|titel }}"),
    "block translated": ("{% if x %}yes{% endif %}", "{% wenn x %}ja{% endif %}"),
    "dollar lost": ("Total: ${total}", "Summe: {total}"),
    "tag lost": ("<b>Save</b>", "Sichern"),
    "tag not closed": ("<b>Save</b>", "<b>Sichern"),
    "tag closed first": ("<b>Save</b>", "</b>Sichern<b>"),
    "tags crossed": ("<b><i>Save</i></b>", "<b><i>Sichern</b></i>"),
    "tag invented": ("Save", "<b>Sichern</b>"),
    "tag changed": ("<b>Save</b>", "<strong>Sichern</strong>"),
    "address changed": ('<a href="/en/">x</a>', '<a href="/de/">x</a>'),
    "script smuggled in": ("Save", "Sichern<script>x()</script>"),
    "placeholder out of its address": ('<a href="%(u)s">%(n)s</a>', '<a href="%(n)s">%(u)s</a>'),
    "mnemonic lost": ("&File", "Datei"),
    "mnemonic doubled": ("&File", "&Datei &neu"),
    "mnemonic made plain": ("&File", "&&Datei"),
    "markup's entity lost": ("a &lt; b", "a < b"),
}


@pytest.mark.parametrize(("source", "translated"), KEPT)
def test_a_translation_may_move_reorder_and_reword_around_what_it_keeps(source: str, translated: str) -> None:
    assert kept(source, translated)


@pytest.mark.parametrize(("source", "translated"), LOST.values(), ids=LOST)
def test_a_placeholder_lost_changed_doubled_or_invented_makes_the_answer_invalid(source: str, translated: str) -> None:
    assert not kept(source, translated)
    # The wanted translation of the same text keeps what the source has; here the source stands for it.
    scores = scorers.score(EVALUATE, source, translated)
    assert scores["validity"] == scores["valid_chrf"] == 0.0
    assert 0.0 <= scores["chrf"] < 1.0


def test_a_valid_answer_is_worth_its_chrf_and_the_wanted_one_all() -> None:
    wanted = "%(title)s wirklich löschen?"
    assert set(scorers.score(EVALUATE, wanted, f" {wanted}\n").values()) == {1.0}
    near = scorers.score(EVALUATE, wanted, "%(title)s löschen?")
    assert near["valid_chrf"] == near["chrf"]
    assert 0.3 < near["chrf"] < 1.0


def test_an_empty_answer_is_invalid_and_worth_nothing() -> None:
    assert set(scorers.score(EVALUATE, "Löschen", " ").values()) == {0.0}


@pytest.mark.parametrize(
    "text", ["{" * 3000, "%(" * 3000, "<" * 3000, "&" * 3001, "<a " * 2000, "{%" * 2000, "<!--" * 9, "<![CDATA["]
)
def test_no_text_takes_long_or_breaks_the_rule(text: str) -> None:
    assert kept(text, text)
    assert not kept("%s", text)
