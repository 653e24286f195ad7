"""Start, ask and stop a local engine: each gives one function from prompts to answers, batched and greedy."""

from workbench.engines.ask import Ask
from workbench.engines.llamacpp import llamacpp_engine
from workbench.engines.transformers import transformers_engine

__all__ = ["Ask", "llamacpp_engine", "transformers_engine"]
