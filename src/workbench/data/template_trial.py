"""Run as a script, in a child with limits: renders a chat template on short conversations, and prints what speaks
against it. That it refuses an order of turns does not: that is another's to say.
"""

from __future__ import annotations

import sys
from typing import Any

LONGEST = 5_000_000  # characters
QUESTION = {"role": "user", "content": "Which colour has the sky? " * 20}
ANSWER = {"role": "assistant", "content": "Blue.\nMostly.", "reasoning_content": "It scatters."}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "a1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
]}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {
    "type": "object", "properties": {"at": {"type": "string"}}}}}  # fmt: skip
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [QUESTION],
    [QUESTION, ANSWER],
    [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER],
    [QUESTION, ANSWER] * 6,
    [QUESTION, CALL, {"role": "tool", "content": "42", "tool_call_id": "a1", "name": "look"}, ANSWER],
)


def main(template: str) -> str:
    """What speaks against a template; "" where nothing does."""
    from workbench.data.tokenizer import compiled

    for messages in CONVERSATIONS:
        for tools in (None, [TOOL]):
            try:
                text = compiled(template).render(
                    messages=messages, tools=tools, documents=None, add_generation_prompt=len(messages) == 1,
                    bos_token="<s>", eos_token="</s>",
                )  # fmt: skip
            except (MemoryError, OverflowError) as error:
                raise MemoryError from error
            except Exception:  # it may refuse what it is given, in any way
                continue
            if len(text) > LONGEST:
                return f"of {len(messages)} short messages it makes {len(text):,} characters"
    return ""


if __name__ == "__main__":
    print(main(sys.argv[1]))
