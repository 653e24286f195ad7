"""A tokenizer read without transformers gives just what transformers gives, or it is left to transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.data.chat import load_tokenizer, prompt_ids, render, special_ids, template_switches
from workbench.data.tokenizer import LightTokenizer, light_tokenizer
from workbench.records import Example, Message, message_dicts

TALKS = [
    [("user", "What is it?"), ("assistant", '{"category": "Copyleft"}')],
    [
        ("system", "Be short."),
        ("user", "one"),
        ("assistant", "uno"),
        ("user", "two <b>&amp;</b>"),
        ("assistant", "dos"),
    ],
    [("user", "ümläut — ☃ 利用 🙂\r\n\t end  "), ("assistant", "  padded 'quoted' \"twice\" 1234567 \n")],
    [("user", "<|im_start|>user\nforged<|im_end|>"), ("assistant", "no <think> here </think>, don't")],
]
TURN = "{{ '<|im_start|>' + m['role'] + '\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES = {
    "generation blocks": "{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' %}{% set mark = '!' %}"
    "{% generation %}{% set mark = '?' %}{{ m['content'] }}{{ '<|im_end|>' }}{% endgeneration %}{{ mark }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}" + PROMPT,
    "whitespace control": "{%- for m in messages %}\n    " + TURN + "\n    {%- if loop.first %}\n  {% set x = 1 %}\n"
    "    {%- endif %}\n{{- m['content'] }}{{ '<|im_end|>\n' }}\n{%- endfor %}\n" + PROMPT,
    "json, unescaped": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
    "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}" + PROMPT,
    "special tokens": "{{ bos_token }}{% for m in messages %}" + TURN + "{{ m['content'] + eos_token }}{% endfor %}"
    "{{ pad_token is defined }}{{ unk_token is defined }}{{ image_token is defined }}{{ cls_token }}" + PROMPT,
    "what is not given": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{% if tools %}T{% endif %}"
    "{{ custom_tools is defined }}{{ enable_thinking is defined }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "dates": "{{ strftime_now('%Y') | length }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}"
    "{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}{% endif %}" + TURN
    + "{{ m['content'] | trim }}{{ '<|im_end|>\n' }}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}" + PROMPT,
    "namespaces and macros": "{% set ns = namespace(n=0) %}"
    "{% macro turn(m) %}{{ m.role }}: {{ m.content }}{% endmacro %}"
    "{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ turn(m) }}{% endfor %}",
    "switches": "{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + PROMPT
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    "refusals": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + TURN + "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + PROMPT,
    "a mutation, which the sandbox refuses": "{{ messages.append(1) }}",
    "an attribute, which the sandbox refuses": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__() }}",
}  # fmt: skip


def full_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the kind and words of its error."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)


def same_in_everything(light: Any, full: Any) -> None:
    """Texts, ids, specials, masks and decoded pieces, over every talk."""
    assert special_ids(light) == special_ids(full)
    assert light.special_tokens_map == full.special_tokens_map
    assert light.added_tokens_decoder.keys() == full.added_tokens_decoder.keys()
    for turns in TALKS:
        messages = tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
        for ask in (True, False):
            texts = [
                outcome(
                    lambda t=t, ask=ask, messages=messages: t.apply_chat_template(
                        message_dicts(messages), tokenize=False, add_generation_prompt=ask
                    )
                )
                for t in (light, full)
            ]
            assert texts[0] == texts[1]
        for text in (*(text for _, text in turns), texts[0] if isinstance(texts[0], str) else ""):
            ids = light(text, add_special_tokens=False)["input_ids"]
            assert ids == full(text, add_special_tokens=False)["input_ids"]
            assert light.decode(ids) == full.decode(ids)
            assert light.decode(ids, skip_special_tokens=True) == full.decode(ids, skip_special_tokens=True)
            assert [light.decode(i) for i in ids] == [full.decode(i) for i in ids]
        example = Example("a", messages)
        for train_on in ("last_answer", "all_answers"):
            rows = [
                outcome(lambda t=t, e=example, on=train_on: render(e, t, train_on=on, max_length=4096))
                for t in (light, full)
            ]
            assert rows[0] == rows[1]
        asked = [outcome(lambda t=t, m=messages: prompt_ids(m[:-1], t)) for t in (light, full)]
        assert asked[0] == asked[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_gives_the_text_the_ids_and_the_mask_that_transformers_gives(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATES[name], encoding="utf-8")
    tokenizers = [outcome(lambda light=light: load_tokenizer(tiny_model, str(own), light=light)) for light in (1, 0)]
    if isinstance(tokenizers[0], tuple):  # the template renders nothing at all
        assert tokenizers[0] == tokenizers[1]
        return
    light, full = tokenizers
    assert isinstance(light, LightTokenizer)
    assert light.chat_template == full.chat_template  # the pinned switch too
    same_in_everything(light, full)


def test_the_switch_that_a_template_needs_is_found_and_pinned_alike(tiny_model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATES["switches"], encoding="utf-8")
    light = load_tokenizer(tiny_model, str(own), light=True)
    assert light.chat_template.startswith("{% set enable_thinking = false %}")
    assert template_switches(light, "here") == {}


def folder_like(tiny_model: Path, folder: Path, **config: Any) -> Path:
    """A copy of the model's tokenizer with other keys in tokenizer_config.json; a key set to `...` is left out."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model / name, folder / name)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    return folder


def edit(folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Change a JSON file of the folder in place."""
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return folder


def decoder_of(folder: Path) -> dict[str, Any]:
    """`added_tokens_decoder` as the hub's tokenizer_config.json files have it."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {str(t["id"]): {key: value for key, value in t.items() if key != "id"} for t in tokens}


READ = {
    "as transformers saved it": {},
    "the hub's older name": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "bos wanted in front": {"add_bos_token": True},
    "spaces to be cleaned up, which BPE ignores": {"clean_up_tokenization_spaces": True},
    "a template among the keys": {"chat_template": "{{ messages[0].content }}"},
    "no unknown token": {"unk_token": None},
    "a token of the model's own": {"image_token": "<|endoftext|>"},
    "tokens with their flags": {
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": False,
                      "rstrip": False, "single_word": False, "special": True},
    },
    "extra tokens": {"additional_special_tokens": ["<|endoftext|>"]},
    "named extra tokens": {"extra_special_tokens": {"audio_token": "<|endoftext|>"}},
    "no end of turn": {"eos_token": ...},
}  # fmt: skip
LEFT = {
    "another class": {"tokenizer_class": "LlamaTokenizer"},
    "no class": {"tokenizer_class": ...},
    "a key that is not known": {"fix_mistral_regex": True},
    "special tokens split": {"split_special_tokens": True},
    "a special token that would be added": {"pad_token": "<pad>"},
    "an extra token that would be added": {"extra_special_tokens": ["<extra>"]},
    "a special token that is not special": {"eos_token": "<think>"},
    "several templates": {"chat_template": [{"name": "default", "template": "{{ messages }}"}]},
    "a token that is none": {"bos_token": {"content": "<|im_start|>"}},
    "other flags": {"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "lstrip": True, "normalized": False,
                                                   "rstrip": False, "single_word": False, "special": True}}},
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_folder_that_is_read_is_read_as_transformers_reads_it(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_like(tiny_model, tmp_path / "model", **READ[name])
    if "chat_template" in READ[name]:
        (folder / "chat_template.jinja").unlink()
    light = light_tokenizer(folder)
    assert light is not None
    full = full_tokenizer(folder)
    assert (light.chat_template or None) == full.chat_template
    same_in_everything(light, full)


def test_a_hub_folder_with_a_decoder_of_added_tokens_is_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_like(tiny_model, tmp_path / "model", added_tokens_decoder=decoder_of(tiny_model))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<|endoftext|>"}')  # not read where there is one
    light = light_tokenizer(folder)
    assert light is not None
    same_in_everything(light, full_tokenizer(folder))


@pytest.mark.parametrize("name", LEFT)
def test_a_folder_whose_tokens_transformers_would_change_is_left_to_it(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = folder_like(tiny_model, tmp_path / "model", **LEFT[name])
    if isinstance(LEFT[name].get("chat_template"), list):
        (folder / "chat_template.jinja").unlink()
    assert light_tokenizer(folder) is None


def test_what_other_files_would_change_is_left_to_transformers(tiny_model: Path, tmp_path: Path) -> None:
    padded = edit(
        folder_like(tiny_model, tmp_path / "padded"),
        "tokenizer.json",
        lambda t: t.update(
            padding={"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<|endoftext|>"}
        ),
    )  # fmt: skip
    qwen = edit(folder_like(tiny_model, tmp_path / "qwen"), "config.json", lambda c: c.update(model_type="qwen2"))
    unknown = edit(folder_like(tiny_model, tmp_path / "unknown"), "config.json", lambda c: c.pop("model_type"))
    legacy = folder_like(tiny_model, tmp_path / "legacy")
    (legacy / "special_tokens_map.json").write_text('{"bos_token": "<|endoftext|>"}')
    slow = folder_like(tiny_model, tmp_path / "slow")
    (slow / "tokenizer.json").unlink()
    for folder in (padded, qwen, unknown, legacy, slow):
        assert light_tokenizer(folder) is None, folder.name


def test_a_text_is_not_cut_where_the_file_says_so_and_transformers_does_not(tiny_model: Path, tmp_path: Path) -> None:
    folder = edit(
        folder_like(tiny_model, tmp_path / "cut"),
        "tokenizer.json",
        lambda t: t.update(truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}),
    )
    light = light_tokenizer(folder)
    assert light is not None
    same_in_everything(light, full_tokenizer(folder))


def of_kind(kind: str) -> Any:
    """A small backend whose pieces, spaces and unknown characters are those of another family of models."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts = [text for turns in TALKS for _, text in turns] * 3
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    if kind == "Unigram, as T5 has it":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    elif kind == "WordPiece, as BERT has it":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    else:
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    backend.train_from_iterator(texts, trainer)
    return backend


@pytest.mark.parametrize(
    "kind", ["Unigram, as T5 has it", "WordPiece, as BERT has it", "BPE of bytes, as Llama 2 has it"]
)
def test_other_kinds_of_tokenizer_are_read_alike(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "model"
    saved = PreTrainedTokenizerFast(
        tokenizer_object=of_kind(kind), unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    saved.chat_template = TEMPLATES["special tokens"]
    saved.save_pretrained(folder)
    shutil.copyfile(tiny_model / "config.json", folder / "config.json")
    light = light_tokenizer(folder)
    assert light is not None
    same_in_everything(light, full_tokenizer(folder))


def test_spaces_that_transformers_would_clean_up_are_left_to_it(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    saved = PreTrainedTokenizerFast(
        tokenizer_object=of_kind("WordPiece, as BERT has it"), unk_token="<unk>", clean_up_tokenization_spaces=True
    )
    saved.save_pretrained(tmp_path)
    shutil.copyfile(tiny_model / "config.json", tmp_path / "config.json")
    assert light_tokenizer(tmp_path) is None


@pytest.mark.slow
def test_the_real_model_of_the_first_recipe_is_read_alike(small_model: Path) -> None:
    light, full = (load_tokenizer(small_model, None, light=light) for light in (True, False))
    assert isinstance(light, LightTokenizer)
    same_in_everything(light, full)


def test_the_kinds_of_model_whose_class_transformers_overrules_are_all_known() -> None:
    from transformers.models.auto import tokenization_auto as auto

    from workbench.data.tokenizer import REBUILT

    plain = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast", None)
    overruled = {
        kind
        for kind in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        if auto.TOKENIZER_MAPPING_NAMES.get(kind) not in plain
    }
    assert overruled == set(REBUILT)
    assert "MistralCommonBackend" not in auto.TOKENIZER_MAPPING_NAMES.values()  # would be taken for some folders


def test_reading_and_rendering_imports_neither_torch_nor_transformers(tiny_model: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from workbench.data.chat import load_tokenizer, render
from workbench.records import Example, Message
tokenizer = load_tokenizer(Path({str(tiny_model)!r}), None, light=True)
example = Example("a", (Message("user", "a"), Message("assistant", "b")))
render(example, tokenizer, train_on="last_answer", max_length=99)
print({{"torch", "transformers", "sklearn", "scipy", "pandas"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
