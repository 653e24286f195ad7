"""The shipped model nouns: their sizes are the hub's, as they were read on a day, and each stands under known terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from workbench.recipe import Model
from workbench.sources import shipped_folder
from workbench.terms.policy import base_duties

# Read 2026-11-28 from the models' cards and configurations where they are quoted publicly (the nouns' files say where):
# parameters of what is tuned, layers, width, MLP width, rows of the embedding, context, licence, family of terms.
SIZES = {
    "gemma3_1b": (999_885_952, 26, 1152, 6912, 262_144, 32_768, "Gemma", "gemma-3"),
    "gemma4_e2b": (4_628_569_344, 35, 1536, 6144, 262_144, 131_072, "Apache-2.0", "gemma-4"),
    "gemma4_e4b": (7_463_013_376, 42, 2560, 10_240, 262_144, 131_072, "Apache-2.0", "gemma-4"),
    "glm4_9b": (9_400_279_040, 40, 4096, 13_696, 151_552, 32_768, "MIT", "glm-mit"),
    "gpt_oss_20b": (20_914_757_184, 24, 2880, 2880, 201_088, 131_072, "Apache-2.0", "gpt-oss"),
    "llama3_1_8b": (8_030_261_248, 32, 4096, 14_336, 128_256, 131_072, "Llama-3.1-Community", "llama-3.1"),
    "llama3_2_1b": (1_235_814_400, 16, 2048, 8192, 128_256, 131_072, "Llama-3.2-Community", "llama-3.2"),
    "llama3_2_3b": (3_212_749_824, 28, 3072, 8192, 128_256, 131_072, "Llama-3.2-Community", "llama-3.2"),
    "llama4_scout": (107_769_861_120, 48, 5120, 8192, 202_048, 10_485_760, "Llama-4-Community", "llama-4"),
    "mistral_7b": (7_248_023_552, 32, 4096, 14_336, 32_768, 32_768, "Apache-2.0", "mistral-apache"),
    "mistral_small_24b": (23_572_403_200, 40, 5120, 32_768, 131_072, 32_768, "Apache-2.0", "mistral-apache"),
    "olmo2_1b": (1_484_916_736, 16, 2048, 8192, 100_352, 4096, "Apache-2.0", "olmo-2-instruct"),
    "olmo3_7b": (7_298_011_136, 32, 4096, 11_008, 100_278, 65_536, "Apache-2.0", "olmo-3"),
    "phi4": (14_659_507_200, 40, 5120, 17_920, 100_352, 16_384, "MIT", "phi"),
    "phi4_mini": (3_836_021_760, 32, 3072, 8192, 200_064, 131_072, "MIT", "phi"),
    "qwen3_0_6b": (596_049_920, 28, 1024, 3072, 151_936, 40_960, "Apache-2.0", "qwen-apache"),
    "qwen3_1_7b": (1_720_574_976, 28, 2048, 6144, 151_936, 40_960, "Apache-2.0", "qwen-apache"),
    "qwen3_4b": (4_022_468_096, 36, 2560, 9728, 151_936, 262_144, "Apache-2.0", "qwen-apache"),
    "qwen3_8b": (8_190_735_360, 36, 4096, 12_288, 151_936, 40_960, "Apache-2.0", "qwen-apache"),
    "qwen3_5_0_8b": (752_393_024, 24, 1024, 3584, 248_320, 262_144, "Apache-2.0", "qwen-apache"),
    "qwen3_5_2b": (1_881_825_088, 24, 2048, 6144, 248_320, 262_144, "Apache-2.0", "qwen-apache"),
    "qwen3_5_4b": (4_205_751_296, 32, 2560, 9216, 248_320, 262_144, "Apache-2.0", "qwen-apache"),
    "qwen3_5_9b": (8_953_803_264, 32, 4096, 12_288, 248_320, 262_144, "Apache-2.0", "qwen-apache"),
    "qwen3_6_27b": (26_895_998_464, 64, 5120, 17_408, 248_320, 262_144, "Apache-2.0", "qwen-apache"),
    "smollm2_135m": (134_515_008, 30, 576, 1536, 49_152, 8192, "Apache-2.0", "smollm2"),
    "smollm2_135m_half": (81_413_568, 30, 576, 1536, 49_152, 8192, "Apache-2.0", "smollm2"),
    "smollm3_3b": (3_075_098_624, 36, 2048, 11_008, 128_256, 65_536, "Apache-2.0", "smollm3"),
}
NOUNS = {path.stem: path for path in sorted((shipped_folder() / "configs" / "model").glob("*.yaml"))}


def test_every_noun_is_in_the_table_and_none_has_left() -> None:
    assert set(NOUNS) == set(SIZES)


@pytest.mark.parametrize("name", NOUNS)
def test_a_noun_has_the_sizes_the_licence_and_the_terms_that_were_read(name: str) -> None:
    keys: dict[str, Any] = yaml.safe_load(NOUNS[name].read_text(encoding="utf-8"))
    model = OmegaConf.merge(OmegaConf.structured(Model), keys)  # a key that the schema lacks raises here
    assert keys["name"] == name
    assert SIZES[name] == (
        model.parameters, model.layers, model.hidden_size, model.intermediate_size, model.vocabulary,
        model.context_length, model.licence, model.family,
    )  # fmt: skip
    assert model.notes, "its template's traps"
    assert model.licence_url.startswith("https://")
    assert model.gated == (model.licence.startswith(("Llama", "Gemma"))), "HF_TOKEN is asked for where the hub asks"
    verdict = base_duties(model.family)
    assert verdict.verdict in ("allow", "allow_with_duties"), verdict.why
    assert verdict.duties, "each of them asks that its licence goes along"


@pytest.mark.parametrize("name", [n for n in NOUNS if n not in ("smollm2_135m", "smollm2_135m_half")])
def test_a_noun_of_the_hub_is_in_the_rooms_table(name: str) -> None:
    page = (Path(shipped_folder()) / "configs" / "model" / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in page
