"""Every row of the terms table gives its verdict, a denial stays one, and duties outlive generations of students."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Teacher
from workbench.terms.policy import (
    FILE,
    KINDS,
    WHEN,
    WORDS,
    Duty,
    as_tags,
    base_duties,
    joined,
    judge,
    name_ok,
    parse,
    read_duties,
    require,
    table,
    write_duties,
)

PURPOSES, DISTRIBUTIONS, COMMERCIAL = WHEN["purpose"], WHEN["distribution"], WHEN["commercial"]
NARROW = ("classifier", "extractor", "summarizer")
SIGNED = "Ada Lovelace, 2026-11-21, read with counsel, the student only sorts our own tickets"

# (the row, route, families, the part of it, the verdict there, kinds of duties). A part names what it narrows.
ROWS: list[tuple[str, str, tuple[str, ...], Mapping[str, tuple[Any, ...]], str, tuple[str, ...]]] = [
    ("OpenAI API, internal classifier", "openai_api", ("", "gpt"),
     {"purpose": ("classifier",), "distribution": ("internal",)}, "allow", ()),
    ("OpenAI API, public classifier", "openai_api", ("", "gpt"),
     {"purpose": ("classifier",), "distribution": ("public",)}, "review", ()),
    ("OpenAI API, anything else", "openai_api", ("", "gpt"),
     {"purpose": ("extractor", "summarizer", "general")}, "review", ()),
    ("Anthropic API, narrow and internal", "anthropic_api", ("", "claude"),
     {"purpose": NARROW, "distribution": ("internal",)}, "review", ()),
    ("Anthropic API, general", "anthropic_api", ("", "claude"), {"purpose": ("general",)}, "deny", ()),
    ("Anthropic API, narrow but public", "anthropic_api", ("", "claude"),
     {"purpose": NARROW, "distribution": ("public",)}, "deny", ()),
    ("Google Gemini API", "gemini_api", ("", "gemini"), {}, "review", ()),
    ("xAI API", "xai_api", ("", "grok"), {}, "deny", ()),
    ("Mistral API", "mistral_api", ("", "mistral", "mistral-apache"), {}, "allow", ()),
    ("DeepSeek API", "deepseek_api", ("", "deepseek"), {}, "allow", ()),
    ("Llama 3.0 weights", "weights", ("llama-3.0",), {}, "deny", ()),
    ("Llama 3.1 to 4 weights", "weights", ("llama-3.1+", "llama-3.1", "llama-3.2", "llama-3.3", "llama-4"), {},
     "allow_with_duties", ("name_prefix", "notice", "pass_on", "threshold")),
    ("Gemma 1 to 3 weights", "weights", ("gemma-1-3", "gemma-1", "gemma-2", "gemma-3"), {},
     "allow_with_duties", ("notice", "pass_on")),
    ("Gemma 4 weights", "weights", ("gemma-4",), {}, "allow", ()),
    ("Qwen weights under Apache-2.0", "weights", ("qwen-apache",), {}, "allow", ()),
    ("Qwen2.5-72B and 3B, commercial", "weights", ("qwen2.5-72b", "qwen2.5-3b"), {"commercial": (True,)},
     "deny", ("notice",)),
    ("Qwen2.5-72B and 3B, not commercial", "weights", ("qwen2.5-72b", "qwen2.5-3b"), {"commercial": (False,)},
     "allow_with_duties", ("notice",)),
    ("DeepSeek weights", "weights", ("deepseek",), {}, "allow", ()),
    ("Mistral weights under Apache-2.0", "weights", ("mistral-apache",), {}, "allow", ()),
    ("GLM under MIT", "weights", ("glm-mit",), {}, "allow", ()),
    ("Kimi K2 weights", "weights", ("kimi-k2",), {}, "allow_with_duties", ("threshold",)),
    ("Phi weights", "weights", ("phi",), {}, "allow", ()),
    ("OLMo 2 base", "weights", ("olmo-2-base",), {}, "allow", ()),
    ("OLMo 2 Instruct", "weights", ("olmo-2-instruct",), {}, "allow_with_duties", ("notice", "pass_on")),
    ("OLMo 3", "weights", ("olmo-3",), {}, "allow", ()),
    ("gpt-oss weights, self-hosted", "weights", ("gpt-oss",), {}, "allow", ()),
    ("SmolLM2 and 3 weights", "weights", ("smollm2", "smollm3"), {}, "allow", ()),
    ("a model of one's own", "own", ("",), {}, "allow", ()),
]  # fmt: skip
CASES = [
    pytest.param(route, family, purpose, distribution, commercial, verdict, kinds,
                 id=f"{row}-{family}-{purpose}-{distribution}-{'commercial' if commercial else 'free'}")
    for row, route, families, part, verdict, kinds in ROWS
    for family, purpose, distribution, commercial in itertools.product(
        families,
        part.get("purpose", PURPOSES),
        part.get("distribution", DISTRIBUTIONS),
        part.get("commercial", COMMERCIAL),
    )
]  # fmt: skip


@pytest.mark.parametrize(("route", "family", "purpose", "distribution", "commercial", "verdict", "kinds"), CASES)
def test_a_row_gives_its_verdict_and_its_duties(
    route: str, family: str, purpose: str, distribution: str, commercial: bool, verdict: str, kinds: tuple[str, ...]
) -> None:
    teacher = Teacher(route=route, family=family, purpose=purpose, distribution=distribution, commercial=commercial)
    said = judge(teacher)
    assert said.verdict == verdict
    assert tuple(sorted({duty.kind for duty in said.duties})) == kinds
    assert said.why
    assert said.source
    assert said.reviewed == "2026-11"
    assert table().version in said.rule

    teacher.terms_acknowledged = None
    if verdict in ("allow", "allow_with_duties"):
        assert require(teacher) == said
    else:
        with pytest.raises(RequestError, match="no legal advice"):
            require(teacher)
    teacher.terms_acknowledged = SIGNED
    if verdict == "deny":
        with pytest.raises(RequestError, match="does not lift"):
            require(teacher)
    else:
        assert require(teacher) == said


def test_the_rows_speak_of_every_route_and_family_and_leave_no_combination_out() -> None:
    tried = {tuple(case.values[:5]) for case in CASES}
    for rule in table().rules:
        if rule.route == "reseller":
            continue
        for family in rule.families or ("",):
            for fits in itertools.product(PURPOSES, DISTRIBUTIONS, COMMERCIAL):
                assert (rule.route, family, *fits) in tried


def test_second_hand_readings_say_so() -> None:
    second = {rule.route for rule in table().rules if rule.confidence == "secondary"}
    assert second == {"openai_api", "anthropic_api", "xai_api", "mistral_api", "deepseek_api"}
    with pytest.raises(RequestError, match="at second hand"):
        require(Teacher(route="xai_api"))


@pytest.mark.parametrize(
    "text", [None, "", "yes", "Ada, 2026-11-21", "Ada, , because", ", 2026-11-21, because", "a,b,", ",,"]
)
def test_a_review_without_who_when_and_why_is_refused_with_a_line_that_can_be_typed(text: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        require(Teacher(route="gemini_api", terms_acknowledged=text))
    assert caught.value.where == "teacher.terms_acknowledged"
    assert caught.value.exit_code == 2
    assert "who" in str(caught.value) or "nobody" in str(caught.value)
    assert "no legal advice" in str(caught.value)


def test_the_line_that_can_be_typed_is_one_value_to_the_shell_and_to_the_door() -> None:
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    with pytest.raises(RequestError) as caught:
        require(Teacher(route="gemini_api"))
    (word,) = shlex.split(caught.value.remedy)
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    assert override.key_or_group == "teacher.terms_acknowledged"
    assert require(Teacher(route="gemini_api", terms_acknowledged=str(override.value()))).verdict == "review"


def test_a_reason_may_hold_commas() -> None:
    assert require(Teacher(route="gemini_api", terms_acknowledged=SIGNED)).verdict == "review"


def test_a_denial_names_the_declaration_that_would_change_it_and_is_lifted_by_nothing_else() -> None:
    teacher = Teacher(route="weights", family="qwen2.5-3b", terms_acknowledged=SIGNED)
    with pytest.raises(RequestError) as caught:
        require(teacher)
    assert caught.value.where == "teacher.family"
    assert "only if it is so: teacher.commercial=false" in caught.value.remedy
    with pytest.raises(RequestError) as caught:
        require(Teacher(route="anthropic_api", distribution="public"))
    assert "teacher.purpose=classifier teacher.distribution=internal" in caught.value.remedy
    with pytest.raises(RequestError) as caught:
        require(Teacher(route="xai_api", terms_acknowledged=SIGNED))
    assert "only if" not in caught.value.remedy
    assert "teacher=local_gguf" in caught.value.remedy


@pytest.mark.parametrize(
    ("route", "family", "hint"),
    [
        ("", "", "no route"),
        ("openai", "gpt", "openai_api"),
        ("azure", "gpt", "knows no route 'azure'"),
        ("weights", "", "no family"),
        ("weights", "smollm", "smollm3"),
        ("weights", "gpt", "did you mean 'gpt-oss'"),
        ("mistral_api", "claude", "knows no family"),
        ("reseller", "", "no family"),
        ("reseller", "mystery-1", "mystery-1"),
        ("own", "mystery-1", "mystery-1"),
    ],
)
def test_an_unknown_teacher_is_for_review_and_the_message_helps_to_name_it(route: str, family: str, hint: str) -> None:
    said = judge(Teacher(route=route, family=family, purpose="classifier"))
    assert said.verdict == "review"
    assert hint in said.why
    with pytest.raises(RequestError) as caught:
        require(Teacher(route=route, family=family, purpose="classifier"))
    assert caught.value.where == "teacher.terms_acknowledged"
    assert require(Teacher(route=route, family=family, terms_acknowledged=SIGNED)).verdict == "review"


def test_an_unknown_family_does_not_soften_a_denial() -> None:
    assert judge(Teacher(route="xai_api", family="mystery")).verdict == "deny"
    assert judge(Teacher(route="anthropic_api", family="mystery")).verdict == "deny"


@pytest.mark.parametrize("fits", list(itertools.product(PURPOSES, DISTRIBUTIONS, COMMERCIAL)))
def test_a_reseller_is_never_better_than_the_maker(fits: tuple[str, str, bool]) -> None:
    purpose, distribution, commercial = fits

    def said(route: str, family: str) -> Any:
        return judge(
            Teacher(route=route, family=family, purpose=purpose, distribution=distribution, commercial=commercial)
        )

    for rule in table().rules:
        for family in rule.families:
            direct, resold = said(rule.route, family), said("reseller", family)
            assert WORDS.index(resold.verdict) >= WORDS.index(direct.verdict)
            assert set(direct.duties) <= set(resold.duties)
            assert "reseller" in resold.rule
    assert said("reseller", "llama-3.3").verdict == "allow_with_duties"
    assert said("reseller", "smollm2").verdict == "allow"
    assert said("reseller", "grok").verdict == "deny"


@pytest.mark.parametrize(
    ("address", "api", "verdict"),
    [
        ("https://api.x.ai/v1", "openai", "deny"),
        ("https://eu-west-1.API.x.ai:443/v1", "openai", "deny"),
        (None, "openai", "review"),
        (None, "anthropic", "deny"),
        ("http://127.0.0.1:8000/v1", "openai", "allow"),
        ("https://fakeapi.x.ai.example.com/v1", "openai", "allow"),
        ("http://[broken", "openai", "allow"),
        (None, "local_gguf", "allow"),
    ],
)
def test_an_address_of_a_known_provider_rules_whatever_route_is_declared(
    address: str | None, api: str, verdict: str
) -> None:
    assert judge(Teacher(route="weights", family="smollm2", api=api, base_url=address)).verdict == verdict


def test_a_declared_route_that_fits_its_address_is_judged_once() -> None:
    said = judge(Teacher(route="mistral_api", api="openai", base_url="https://api.mistral.ai/v1"))
    assert (said.verdict, said.rule) == ("allow", f"mistral_api ({table().version})")


def test_a_model_of_ones_own_hands_on_what_it_inherited_and_what_its_weights_ask() -> None:
    duty = Duty("pass_on", "hand the terms on", "somebody's terms")
    assert judge(Teacher(route="own")).duties == ()
    said = require(Teacher(route="own"), inherited=[duty])
    assert (said.verdict, said.duties) == ("allow_with_duties", (duty,))
    tuned = judge(Teacher(route="own", family="llama-3.1"), inherited=[duty])
    assert tuned.verdict == "allow_with_duties"
    assert tuned.duties[-1] == duty
    assert any(d.kind == "name_prefix" for d in tuned.duties)
    assert judge(Teacher(route="own", family="llama-3.0"), inherited=[duty]).verdict == "deny"


def test_duties_outlive_three_generations(tmp_path: Path) -> None:
    llama = judge(Teacher(route="weights", family="llama-3.1")).duties
    write_duties(tmp_path / "label", llama)
    first = joined(read_duties(tmp_path / "label"), base_duties("smollm2").duties)
    write_duties(tmp_path / "student", first)
    gemma = require(Teacher(route="weights", family="gemma-3")).duties
    second = joined(read_duties(tmp_path / "student"), gemma, llama)
    write_duties(tmp_path / "grandchild", second)
    third = require(Teacher(route="own"), inherited=read_duties(tmp_path / "grandchild")).duties
    write_duties(tmp_path / "great", joined(third, base_duties("phi").duties))
    last = read_duties(tmp_path / "great")
    assert set(last) == {*llama, *base_duties("smollm2").duties, *gemma, *base_duties("phi").duties}
    assert len(last) == len(set(last))


def test_the_duties_file_is_the_same_whatever_order_they_came_in(tmp_path: Path) -> None:
    duties = judge(Teacher(route="weights", family="llama-4")).duties
    write_duties(tmp_path / "a", duties)
    write_duties(tmp_path / "b", [*reversed(duties), duties[0]])
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == [FILE]


def test_no_duties_leave_no_file_and_no_file_means_no_duties(tmp_path: Path) -> None:
    write_duties(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    assert read_duties(tmp_path) == ()
    assert read_duties(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"duties": {}}', '{"duties": ["x"]}', '{"duties": [{"kind": "notice", "text": "t"}]}',
        '{"duties": [{"kind": "wish", "text": "t", "origin": "o"}]}',
        '{"duties": [{"kind": "notice", "text": " ", "origin": "o"}]}',
        '{"duties": [{"kind": ["notice"], "text": "t", "origin": "o"}]}',
        '{"duties": [{"kind": "notice", "text": "t", "origin": "o", "until": "2030"}]}',
    ],
)  # fmt: skip
def test_a_broken_duties_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(WorkbenchError) as caught:
        read_duties(tmp_path)
    assert caught.value.where == str(tmp_path / FILE)
    assert caught.value.remedy


def test_bytes_that_are_no_text_are_a_broken_duties_file_too(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        read_duties(tmp_path)


def test_joining_keeps_the_first_of_equals_in_order() -> None:
    a, b, c = (Duty("notice", text, "o") for text in "abc")
    assert joined([b, a], [], (a, c, b)) == (b, a, c)
    assert joined() == ()


def test_tags_are_flat_numbered_and_short_enough_for_the_registry() -> None:
    duties = judge(Teacher(route="weights", family="llama-3.2")).duties
    tags = as_tags([*duties, duties[0]])
    assert list(tags) == [f"duty.{i}" for i in range(1, len(duties) + 1)]
    for duty, value in zip(duties, tags.values()):
        assert duty.kind in value
        assert duty.text in value
        assert duty.origin in value
    (long,) = as_tags([Duty("notice", "é" * 9_000, "o")]).values()
    assert len(long) == 5_000
    assert long.endswith("…")
    assert as_tags([]) == {}


@pytest.mark.parametrize(
    ("name", "family", "better"),
    [
        ("Llama-legal", "llama-3.1", None),
        ("acme/Llama-3.1-legal-8B", "llama-3.1", None),
        ("legal", "llama-3.1", "Llama-legal"),
        ("acme/legal", "llama-3.1", "acme/Llama-legal"),
        ("Llama-house/legal", "llama-3.1", "Llama-house/Llama-legal"),
        ("llama_legal", "llama-3.1", "Llama-legal"),
        ("Llama-3-legal", "llama-3.0", None),
        ("Llama legal", "llama-3.0", "Llama-3-legal"),
        ("legal", "gemma-3", None),
        ("legal", "smollm2", None),
    ],
)
def test_a_model_that_came_from_llama_is_named_so(name: str, family: str, better: str | None) -> None:
    duties = base_duties(family).duties
    complaint = name_ok(name, duties)
    if better is None:
        assert complaint is None
    else:
        assert complaint is not None
        assert repr(name) in complaint
        assert repr(better) in complaint
        assert name_ok(better, duties) is None


@pytest.mark.parametrize(
    ("family", "verdict", "prefix"),
    [
        ("llama-3.0", "allow_with_duties", "Llama 3"),
        ("Llama-3.2", "allow_with_duties", "Llama"),
        ("gemma-3", "allow_with_duties", None),
        ("olmo-2-instruct", "allow_with_duties", None),
        ("smollm2", "allow_with_duties", None),
        ("qwen2.5-3b", "deny", None),
        ("gpt", "review", None),
        ("", "review", None),
    ],
)
def test_a_bases_licence_says_what_may_be_done_and_under_which_name(
    family: str, verdict: str, prefix: str | None
) -> None:
    said = base_duties(family)
    assert said.verdict == verdict
    assert next((d.text for d in said.duties if d.kind == "name_prefix"), None) == prefix
    assert said.why


def test_every_base_asks_for_its_licence_to_go_along() -> None:
    for rule in table().rules:
        if rule.route == "weights":
            assert rule.base is not None
            assert {d.kind for d in rule.base.duties} & {"notice", "pass_on"}
            assert set(rule.duties) <= set(rule.base.duties)


def test_a_base_for_research_alone_may_be_tuned_where_no_money_is_made() -> None:
    assert base_duties("qwen2.5-72b", commercial=False).verdict == "allow_with_duties"
    assert base_duties("qwen2.5-72b", commercial=False, distribution="internal").verdict == "allow_with_duties"
    assert base_duties("qwen2.5-72b", distribution="internal").verdict == "deny"


def raw_table() -> Any:
    return yaml.safe_load(resources.files("workbench.terms").joinpath("terms.yaml").read_text(encoding="utf-8"))


def test_the_shipped_table_names_all_routes_uses_all_its_duties_and_gives_a_reason_everywhere() -> None:
    terms = table()
    assert terms is table()
    assert {"openai_api", "anthropic_api", "gemini_api", "xai_api", "mistral_api", "deepseek_api"} < set(terms.routes)
    assert {"weights", "reseller", "own"} < set(terms.routes)
    bases = [rule.base for rule in terms.rules if rule.base]
    used = {d for holder in (*terms.rules, *bases) for d in holder.duties}
    assert used == {Duty(**spec) for spec in raw_table()["duties"].values()}
    assert {d.kind for d in used} == set(KINDS)
    for rule in terms.rules:
        assert rule.source.startswith("https://") or rule.route == "own"
        assert all(len(case.why.split()) >= 4 for case in rule.cases)
    json.dumps(raw_table())


def broken_tables() -> list[Any]:
    def change(name: str, edit: Any) -> Any:
        content = copy.deepcopy(raw_table())
        edit(content)
        return pytest.param(content, id=name)

    def entry(content: Any, family: str) -> Any:
        return next(rule for rule in content["rules"] if family in rule["family"])

    def set_in(family: str, key: str, value: Any) -> Any:
        return lambda content: entry(content, family).update({key: value})

    def case_of(family: str, **values: Any) -> Any:
        return lambda content: entry(content, family)["cases"][0].update(values)

    return [
        pytest.param([], id="no mapping"),
        change("unknown top key", lambda c: c.update(notes="x")),
        change("missing version", lambda c: c.pop("version")),
        change("unknown key of a rule", set_in("gpt", "vedict", "allow")),
        change("missing source", lambda c: entry(c, "gpt").pop("source")),
        change("empty source", set_in("gpt", "source", "")),
        change("unknown verdict", case_of("grok", verdict="perhaps")),
        change("unknown route", set_in("grok", "route", "grok_api")),
        change("unknown duty", set_in("kimi-k2", "duties", ["kimi_displays"])),
        change("duties without the verdict", set_in("phi", "duties", ["kimi_display"])),
        change("the verdict without duties", set_in("kimi-k2", "duties", [])),
        change("unknown condition", case_of("gpt", when={"country": ["CH"]})),
        change("unknown purpose", case_of("gpt", when={"purpose": ["poet"]})),
        change("1 is not true", case_of("qwen2.5-3b", when={"commercial": [1]})),
        change("no last case for the rest", case_of("grok", when={"purpose": ["general"]})),
        change("a case that is never reached", lambda c: entry(c, "gpt")["cases"][0].pop("when")),
        change("no cases", set_in("grok", "cases", [])),
        change("a month that is none", set_in("phi", "reviewed", "2026-13")),
        change("unknown confidence", set_in("phi", "confidence", "high")),
        change("two rules for a family", set_in("phi", "family", ["smollm2"])),
        change("weights of no family", set_in("phi", "family", [])),
        change("weights without a base", lambda c: entry(c, "phi").pop("base")),
        change("unknown key of a base", lambda c: entry(c, "phi")["base"].update(sell="allow")),
        change("a route without a rule", lambda c: c["routes"].update(new_api={"kind": "api", "hosts": []})),
        change("unknown kind of route", lambda c: c["routes"]["own"].update(kind="mine")),
        change("unknown kind of duty", lambda c: c["duties"]["kimi_display"].update(kind="wish")),
        change("empty duty", lambda c: c["duties"]["kimi_display"].update(text="")),
    ]


@pytest.mark.parametrize("content", broken_tables())
def test_a_table_that_breaks_its_own_rules_is_an_error_at_load(content: Any) -> None:
    with pytest.raises(WorkbenchError) as caught:
        parse(content)
    assert caught.value.where.startswith("terms.yaml: ")


def test_the_shipped_table_is_untouched_by_parsing() -> None:
    assert parse(raw_table()) == table()
