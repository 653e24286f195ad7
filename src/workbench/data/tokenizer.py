"""A model's tokenizer without transformers or torch: `tokenizers` reads tokenizer.json, jinja2 renders the template.

transformers takes five seconds of CPU to import, which counting tokens or showing a row is not worth. What it makes of
a folder is rebuilt here only where that is known: the tokenizer.json is used as it is, no token is added to it and no
flag of one is changed. Everything else is left to transformers, so that ids and text never differ between the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import RequestError

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import AddedToken, Tokenizer

# The classes that take a tokenizer.json as it is; every other one builds a pipeline of its own from its vocabulary.
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
# For these kinds of model transformers takes the class registered for it, whatever tokenizer_config.json says.
REBUILT = ("qwen2",)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Keys of tokenizer_config.json that change neither ids nor text; a folder with any other is left to transformers.
HARMLESS = {
    "add_bos_token", "add_eos_token", "add_prefix_space", "backend", "chat_template", "clean_up_tokenization_spaces",
    "is_local", "legacy", "local_files_only", "max_length", "model_input_names", "model_max_length", "name_or_path",
    "padding_side", "processor_class", "stride", "tokenizer_class", "truncation_side", "truncation_strategy",
    "use_default_system_prompt",
}  # fmt: skip
EXTRA = ("extra_special_tokens", "additional_special_tokens")


class LightTokenizer:
    """What `data.chat` needs of a tokenizer, by the names transformers gives it."""

    def __init__(self, folder: Path, backend: Tokenizer, named: dict[str, str], extra: Sequence[str], template: str):
        self.name_or_path = str(folder)
        self.chat_template = template
        self.backend = backend
        self.special_tokens_map = named
        self.eos_token_id = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
        self.all_special_ids = [backend.token_to_id(token) for token in dict.fromkeys([*named.values(), *extra])]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id → token, of every token that is no part of the vocabulary's own pieces."""
        return self.backend.get_added_tokens_decoder()

    def __call__(self, text: str | list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        """`{"input_ids": …}` of a text, or of several, which are encoded on all cores."""
        if isinstance(text, list):
            several = self.backend.encode_batch_fast(text, add_special_tokens=add_special_tokens)
            return {"input_ids": [one.ids for one in several]}
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False, **_: object) -> str:
        """The text of an id or of several."""
        return self.backend.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tokenize: bool,
        add_generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        **values: object,
    ) -> str:
        """The messages as the template writes them; jinja2's errors and the template's own come through."""
        if tokenize or not messages:
            raise ValueError("a light tokenizer renders text, of one message or more")
        known = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return compiled(self.chat_template).render(**known, **(self.special_tokens_map | values))


def light_tokenizer(folder: Path) -> LightTokenizer | None:
    """The tokenizer of a model folder, or None where only transformers knows what it makes of it."""
    config, model = read_object(folder / "tokenizer_config.json"), read_object(folder / "config.json")
    if not (folder / "tokenizer.json").is_file() or not taken_as_it_is(folder, config, model):
        return None
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    extra = next((config[key] for key in EXTRA if key in config), None) or []
    tokens = {key: content_of(value) for key, value in config.items() if key.endswith("_token") and value is not None}
    tokens = {key: value for key, value in tokens.items() if key not in HARMLESS}
    if isinstance(extra, dict):
        tokens |= {key: content_of(value) for key, value in extra.items()}
        extra = []
    named = {key: tokens[key] for key in (*NAMED, *(key for key in tokens if key not in NAMED)) if key in tokens}
    words = [*named.values(), *map(content_of, extra)]
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    if any(word not in added or not added[word].special or added[word].normalized for word in words):
        return None  # transformers would add it, or make it special
    if not all(same(entry, added) for entry in config.get("added_tokens_decoder", {}).values()):
        return None
    if backend.padding is not None or (
        config.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE"
    ):
        return None
    backend.no_truncation()
    own = folder / "chat_template.jinja"
    template = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    return LightTokenizer(folder, backend, named, words[len(named) :], template or "")


def taken_as_it_is(folder: Path, config: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether transformers would use the folder's tokenizer.json unchanged, as far as its other files tell."""
    tokens = (key for key in config if key.endswith("_token") and key not in HARMLESS)
    legacy = ("special_tokens_map.json", "added_tokens.json")
    return (
        config.get("tokenizer_class") in AS_IT_IS
        and bool(model.get("model_type"))
        and model["model_type"] not in REBUILT
        and set(config) <= {*HARMLESS, *EXTRA, "added_tokens_decoder", *tokens}
        and all(config[key] is None or content_of(config[key]) for key in config if key.endswith("_token")
                and key not in HARMLESS)
        and isinstance(config.get("chat_template"), str | None)
        and not (folder / "additional_chat_templates").exists()
        and ("added_tokens_decoder" in config or not any((folder / name).exists() for name in legacy))
    )  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is no such file. RequestError where it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"it cannot be read: {error}", where=str(path), remedy="fetch it anew") from None


def content_of(token: object) -> str:
    """A special token's text, as tokenizer_config.json writes it: plain, or with its flags."""
    if isinstance(token, dict) and token.get("__type") == "AddedToken":
        return str(token["content"])
    return token if isinstance(token, str) else ""


def same(entry: dict[str, Any], added: dict[str, AddedToken]) -> bool:
    """Whether a token of tokenizer_config.json is one of tokenizer.json's, with the same flags."""
    token = added.get(str(entry.get("content")))
    flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
    return token is not None and all(getattr(token, flag) == entry.get(flag) for flag in flags)


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """A chat template in the sandbox that transformers compiles it in, with the same filters and functions.

    https://huggingface.co/docs/transformers/chat_templating_writing
    """
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says: it is rendered as what it holds."""

        tags = {"generation"}  # noqa: RUF012  (jinja2's own shape)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("as_it_is"), [], [], body).set_lineno(line)

        def as_it_is(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        # jinja2's own filter escapes what HTML would read.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = tojson
    sandbox.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return sandbox.from_string(template)
