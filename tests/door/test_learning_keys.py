"""`method.learn` and its neighbours: what a recipe may ask for together, and what it is told when it may not."""

from __future__ import annotations

import pytest

from workbench.compose import composed, find_recipe
from workbench.errors import RequestError
from workbench.recipe import Recipe, read, weights_of
from workbench.recipe.methods import learned, material_of


def recipe_of(*words: str, name: str = "legal_lora") -> Recipe:
    return read(composed(find_recipe(name), list(words)), name)


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["method.learn=[dop]"], "method.learn", "did you mean 'dpo'"),
        (["method.learn=[text]"], "method.learn", "method.distil=[text]"),
        (["method.distil=[dpo]"], "method.distil", "method.learn=[dpo]"),
        (["method.learn=[sft,sft]"], "method.learn", "twice"),
        (["method.learn=[pretrain,sft]"], "method.learn", "data.documents"),
        (["method.learn=[dpo]", "data.documents=dir:x"], "data.documents", "nothing reads"),
        (["method.learn=[grpo]", "method.reward.guard=json_fields"], "method.reward.guard", "would not see"),
        (["method.learn=[grpo]", "method.reward.guard=chef"], "method.reward.guard", "no scorer"),
        (["model.adapter=dir:x", "method.kind=full"], "model.adapter", "full fine-tuning"),
        (["model.adapter=dir:x", "model.shrink.layers=5"], "model.shrink.layers", "whole model"),
        (["method.adapter_init=pissa", "method.kind=qlora"], "method.adapter_init", "16-bit"),
        (["method.adapter_init=pissa", "method.learn=[sft,grpo]"], "method.adapter_init", "chain"),
    ],
)
def test_what_cannot_be_learned_together_is_refused_with_the_key_and_the_way_out(
    words: list[str], where: str, what: str
) -> None:
    with pytest.raises(RequestError) as refused:
        recipe_of(*words)
    assert refused.value.where == where
    assert what in f"{refused.value} {refused.value.remedy}"


def test_a_teacher_s_answers_and_own_pairs_are_not_learned_in_one_run() -> None:
    with pytest.raises(RequestError, match="teacher"):
        recipe_of("method.learn=[dpo]", "method.distil=[]", name="legal_distil")
    with pytest.raises(RequestError, match="a teacher or from one"):
        recipe_of("method.learn=[sft]", name="legal_distil")


def test_a_chain_names_what_its_rows_may_be_and_raw_text_of_its_own_leaves_them_alone() -> None:
    assert material_of(recipe_of()) == {"answers"}, "no kind is named: a rejected answer is never learned unasked"
    assert material_of(recipe_of("method.learn=[sft,dpo]")) == {"pairs"}
    assert material_of(recipe_of("method.learn=[kto]")) == {"pairs", "judged answers"}
    assert material_of(recipe_of("method.learn=[pretrain]")) == {"text"}
    chain = recipe_of("method.learn=[pretrain,sft,dpo]", "data.documents=dir:x")
    assert material_of(chain) == {"pairs"}
    assert [kind.name for kind in learned(chain.method)] == ["pretrain", "sft", "dpo"]
    assert [kind.name for kind in learned(recipe_of().method)] == ["sft"]


def test_the_scorer_belongs_to_the_weights_only_where_it_is_the_reward() -> None:
    plain, other = recipe_of(), recipe_of("evaluate.primary=license_accuracy")
    assert weights_of(plain) == weights_of(other)
    words = "method.learn=[sft,grpo]"
    assert weights_of(recipe_of(words)) != weights_of(recipe_of(words, "evaluate.primary=license_accuracy"))
    assert weights_of(recipe_of(words)) == weights_of(recipe_of(words, "evaluate.limit=7"))
