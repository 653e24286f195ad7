"""Merge: the adapter goes into 16-bit weights, and the result must agree with the unmerged one."""

from __future__ import annotations

import shutil

from workbench.data.chat import recipe_tokenizer
from workbench.engines.device import release_memory
from workbench.recipe import Recipe
from workbench.records import digest
from workbench.runs import Run, stage
from workbench.stages.common import hold_made, is_done, need, say
from workbench.stages.rows import part
from workbench.stages.train.task import rendered, start_model
from workbench.terms.policy import as_tags, base_duties, joined, read_duties, write_duties

PROBE_ROWS = 32


def run(recipe: Recipe, run: Run) -> bool:
    """Merge unless it is done; full fine-tuning has nothing to merge, its model is handed on."""
    need(run, "train", "merge")
    fingerprint = digest({"train": run.output_digest("train")}, 16)
    if is_done(run, "merge", fingerprint):
        return False
    hold_made(run, "train")
    base = start_model(recipe, run)
    with stage(run, "merge", fingerprint) as staging:
        if recipe.method.kind == "full":
            shutil.copytree(run.folder / "train" / "model", staging.folder / "model")
            # Training saves the base's own template: served is the one that was trained with.
            recipe_tokenizer(base, recipe.model, recipe.method).save_pretrained(staging.folder / "model")
            say(run, "merge", "nothing to merge: every weight was trained")
        else:
            from workbench.compress.merge_adapter import merge

            probe = rendered(recipe, base, part(recipe, run, "validation")[:PROBE_ROWS])
            staging.facts = merge(
                base,
                run.folder / "train" / "adapter",
                staging.folder / "model",
                tokenizer=recipe_tokenizer(base, recipe.model, recipe.method),
                probe=probe,
                dtype=recipe.model.dtype,
                kind=recipe.method.kind,
                device=recipe.launch.device,
            )
            release_memory()
            facts = staging.facts
            if "merges" in facts:
                distances = ", ".join(f"{name.replace('_', ' ')} {kl:.2g}" for name, kl in facts["merges"].items())
                say(run, "merge", f"KL of each merge: {distances}; kept: {facts['kept'].replace('_', ' ')}")
            say(
                run,
                "merge",
                f"merged against adapter on {facts['rows']} held-out rows: KL {facts['kl']:.2g}, "
                f"same first choice {facts['top_token_agreement']:.1%}",
            )
        # A student of a student owes what its teacher owed, and a tuned student what its base did.
        owed = base_duties(recipe.model.family).duties if recipe.model.family else ()
        of_teachers = (read_duties(run.folder / stage) for stage in ("label", "train"))
        duties = joined(*of_teachers, read_duties(base), owed)
        write_duties(staging.folder / "model", duties)
        staging.facts |= {"duties": as_tags(duties)} if duties else {}
        staging.artefacts = ["model"]
    return True
