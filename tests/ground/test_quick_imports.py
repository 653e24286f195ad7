"""A process of ours starts without what nobody calls, and whoever does call it has it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
import workbench
import peft
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.generation import candidate_generator
print(sorted({"sklearn", "pandas", "bitsandbytes"} & set(sys.modules)))
from peft.import_utils import is_bnb_available
from peft.tuners.lora import Linear4bit
from sklearn.metrics import roc_curve
print(is_bnb_available(), Linear4bit.__name__, roc_curve([0, 1], [0.1, 0.9])[0].tolist()[-1])
"""


@pytest.mark.slow
def test_a_training_is_imported_without_libraries_it_does_not_call_which_are_there_for_whoever_does() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True Linear4bit 1.0"], done.stdout


def test_a_module_that_cannot_do_without_is_run_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needed_by_it.py").write_text("HERE = True\n")
    (tmp_path / "cannot_do_without.py").write_text("import needed_by_it\nHERE = needed_by_it.HERE\n")
    (tmp_path / "can_do_without.py").write_text(
        "try:\n    import needed_too\n    HERE = True\nexcept ImportError:\n    HERE = False\n"
    )
    (tmp_path / "needed_too.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"cannot_do_without": "needed_by_it", "can_do_without": "needed_too"}
    monkeypatch.setattr("workbench.quick_imports.UNUSED", names)
    monkeypatch.setattr("sys.path_importer_cache", {})
    assert importlib.import_module("cannot_do_without").HERE
    assert not importlib.import_module("can_do_without").HERE
    assert importlib.import_module("needed_too")
