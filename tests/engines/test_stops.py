"""What ends an answer: every place that names a token counts, and one that names none is no fault."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.engines.ask import stop_ids

TOKENIZER = SimpleNamespace(eos_token_id=2)


@pytest.mark.parametrize(("named", "ids"), [(7, {2, 7}), ([7, 9], {2, 7, 9}), (None, {2}), ([], {2}), (0, {0, 2})])
def test_folder_and_loaded_model_name_the_same_stops_beside_the_tokenizers(
    named: Any, ids: set[int], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))
    assert stop_ids(tmp_path, TOKENIZER) == stop_ids(model, TOKENIZER) == ids


def test_a_folder_without_a_generation_config_and_a_tokenizer_without_an_end_name_none(tmp_path: Path) -> None:
    assert stop_ids(tmp_path, SimpleNamespace(eos_token_id=None)) == set()
