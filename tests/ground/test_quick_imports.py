"""A process of ours starts without what nobody calls, and whoever does call it has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import importlib.util, sys
import workbench
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.generation import candidate_generator
print(sorted({"sklearn", "scipy", "pandas"} & set(sys.modules)))
assert "sklearn" not in sys.modules and importlib.util.find_spec("sklearn")
from sklearn.metrics import roc_curve
print(roc_curve([0, 1], [0.1, 0.9])[0].tolist()[-1])
"""


@pytest.mark.slow
def test_a_model_is_imported_without_scikit_learn_which_is_there_for_whoever_wants_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "1.0"], done.stdout
