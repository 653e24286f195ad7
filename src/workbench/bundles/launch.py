"""Launch files: a POSIX script for each engine that takes the bundle, an Ollama Modelfile, and the table of engines."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from workbench.bundles.facts import About, Verified, adapter_facts, gguf_file
from workbench.dialects import Parsers
from workbench.errors import WorkbenchError
from workbench.formats import LIKE_TRAINING, Taker, find_format, format_named

# Which engine takes a bundle, and on which hardware: the table in ENGINES.md, and which launch files are written. What
# takes a format is the format's own fact; an engine counts as verified only where it loaded this very bundle.

NAMES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "ollama": "Ollama",
    "transformers": "transformers",
}
PLAIN = ("bf16", "bfloat16", "float16", "float32")
LARGEST_RANK = 512  # of an adapter that vLLM takes


PLAIN_TAKERS = (  # of a model in 16 bits
    Taker("vllm", "NVIDIA compute capability 8.0 (7.0 with --dtype float16), AMD, Intel GPU; x86 and Arm CPU"),
    Taker("sglang", "NVIDIA compute capability 8.0, AMD"),
    LIKE_TRAINING,
)
ADAPTER_TAKERS = (
    Taker("vllm", "as its base model", "the base model is loaded too, from where it was taken"),
    Taker("transformers", "CPU or GPU", "with peft"),
)


def takers(about: About, folder: Path) -> tuple[Taker, ...]:
    """The engines that take this bundle. vLLM is left out for an adapter that it refuses, and the reason is told."""
    if about.kind != "adapter":
        return PLAIN_TAKERS if about.format in PLAIN else format_named(about.format).takers
    refusal = vllm_refuses(folder)
    return tuple(t for t in ADAPTER_TAKERS if t.engine != "vllm" or refusal is None)


def vllm_refuses(folder: Path) -> str | None:
    """Why vLLM would not load the adapter in this folder, or None."""
    facts = adapter_facts(folder)
    kept = [name for name in facts.get("modules_to_save") or [] if name not in ("classifier", "score")]
    if facts.get("use_dora"):
        return "it is a DoRA adapter"
    if kept:
        return f"it replaces whole modules: {', '.join(kept)}"
    if facts.get("bias", "none") != "none" or facts.get("lora_bias"):
        return "it trains biases"
    if largest_rank(folder) > LARGEST_RANK:
        return f"its rank {largest_rank(folder)} is over {LARGEST_RANK}"
    return None


def largest_rank(folder: Path) -> int:
    """The largest rank of any layer of the adapter in this folder."""
    facts = adapter_facts(folder)
    return max([1, int(facts.get("r") or 1), *map(int, (facts.get("rank_pattern") or {}).values())])


def engine_table(about: About, folder: Path) -> str:
    """The table of engines and hardware as Markdown; `verified here` only where this bundle was really loaded."""
    rows = list(takers(about, folder))
    rows += [Taker(v.engine, v.hardware) for v in about.verified if v.engine not in {t.engine for t in rows}]
    lines = ["| engine | hardware, at least | verified here | note |", "| --- | --- | --- | --- |"]
    for taker in rows:
        loaded = [engine for engine in about.verified if engine.engine == taker.engine]
        seen = "; ".join(seen_in(engine) for engine in loaded) or "no"
        lines.append(f"| {NAMES.get(taker.engine, taker.engine)} | {taker.hardware} | {seen} | {taker.note} |")
    refusal = vllm_refuses(folder) if about.kind == "adapter" else None
    return "\n".join(lines) + (f"\n\nvLLM does not take this adapter: {refusal}." if refusal else "")


def seen_in(verified: Verified) -> str:
    """`yes (0.32.0, x86 CPU)`."""
    facts = ", ".join(filter(None, (verified.version, verified.hardware)))
    return f"yes ({facts})" if facts else "yes"


SCRIPTS = ("serve_vllm.sh", "serve_sglang.sh", "serve_llamacpp.sh", "serve_lora_vllm.sh")
MODELFILE, ENGINES = "Modelfile", "ENGINES.md"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, LARGEST_RANK)  # what vLLM can be told as the largest
DEFAULT_CONTEXT = 2048
GREEDY = """'{"temperature": 0}'"""
TEMPLATE = '"$here/chat_template.jinja"'
RUN_VLLM = """# VLLM_PYTHON is the interpreter of an environment with vLLM; without it, vllm is looked for on the PATH.
if [ -n "${VLLM_PYTHON:-}" ]; then
  exec "$VLLM_PYTHON" -m vllm.entrypoints.openai.api_server --model "$model" "$@"
fi
exec vllm serve "$model" "$@"
"""


def write_launch(folder: Path, about: About) -> list[str]:
    """Write the launch files for the engines that take this bundle, and ENGINES.md; returns the names written."""
    engines = [taker.engine for taker in takers(about, folder)]
    texts: dict[str, str] = {}
    if about.kind == "adapter":
        if "vllm" in engines:
            texts["serve_lora_vllm.sh"] = lora_vllm(about, folder)
    else:
        writers: dict[str, tuple[str, Callable[[About], str]]] = {
            "vllm": ("serve_vllm.sh", vllm),
            "sglang": ("serve_sglang.sh", sglang),
            "llamacpp": ("serve_llamacpp.sh", llamacpp),
            "ollama": (MODELFILE, modelfile),
        }
        texts = {writers[e][0]: writers[e][1](about) for e in engines if e in writers}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755 if name.endswith(".sh") else 0o644)
    started = "\n".join(f"- `{how_to_start(name, about)}`" for name in texts)
    heading = f"# Engines for {about.name} ({about.format})\n\n{engine_table(about, folder)}\n"
    (folder / ENGINES).write_text(heading + (f"\nTo start one:\n\n{started}\n" if started else ""), encoding="utf-8")
    return [*texts, ENGINES]


def how_to_start(name: str, about: About) -> str:
    """The command for a launch file; `sh` because an object store keeps no executable bit."""
    if name == MODELFILE:
        return f"ollama create {shlex.quote(about.name.lower())} -f {MODELFILE}"
    return f"sh {name}"


def head(about: About, engine: str, port: int, more: str = "") -> str:
    """What every script begins with: what it starts, its variables, its own folder as `$here`."""
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    return f"""#!/bin/sh
# {one_line(about.name)} ({about.format}) in {NAMES[engine]}: {address}
# HOST and PORT change the address, CONTEXT the longest prompt and answer together, in tokens; arguments are passed on.
{more}set -eu
CDPATH='' cd -- "$(dirname -- "$0")"
here=$(pwd)
"""


def one_line(text: str) -> str:
    """Text that cannot end a comment."""
    return " ".join(text.split())


def address(port: int) -> str:
    """Loopback unless it is said otherwise."""
    return f'--host "${{HOST:-127.0.0.1}}" --port "${{PORT:-{port}}}"'


def context(about: About) -> str:
    """The longest prompt and answer together."""
    return f'"${{CONTEXT:-{about.context_length or DEFAULT_CONTEXT}}}"'


def vllm(about: About) -> str:
    """vLLM reads most formats from config.json; what it must be told beside that is the format's own fact."""
    format = find_format(about.format)
    taker = format.taker("vllm") if format else None
    flags = f" {taker.flags}" if taker and taker.flags else ""
    more = f"# {taker.to_start}\n" if taker and taker.to_start else ""
    return (
        head(about, "vllm", 8000, more)
        + f"""export HF_HUB_OFFLINE=1
model=$here
set -- {address(8000)} \\
  --served-model-name {shlex.quote(about.name)} \\
  --max-model-len {context(about)}{flags}{vllm_parsers(about)} \\
  --chat-template {TEMPLATE} \\
  --generation-config "$here" --override-generation-config {GREEDY} "$@"
{RUN_VLLM}"""
    )


def lora_vllm(about: About, folder: Path) -> str:
    """The base model with the adapter beside it, both under their names, with the adapter's tokenizer and template."""
    rank = next((r for r in RANKS if r >= largest_rank(folder)), LARGEST_RANK)
    hub, source = about.base.hub, one_line(about.base.source)
    tokenizer = ' --tokenizer "$here"' if (folder / "tokenizer.json").is_file() else ""
    revision = about.base.source.partition("@")[2] if about.base.source.startswith("hf:") else ""
    base = f"${{BASE:-{hub}}}" if hub else "${BASE:?name the folder of the base model}"
    pinned = f' --revision "${{REVISION:-{revision}}}"' if revision else ""
    more = f"# BASE is the base model, {source}, as a folder or a hub name; the weights must be the very same.\n"
    if about.base.cut:
        base, pinned = "${BASE:?name the folder of the cut base model}", ""
        more = f"# BASE is the folder of {source}, cut to {one_line(about.base.cut)}: on the whole of it\n"
        more += "# the adapter's layers would sit on others than those they were trained on.\n"
    return (
        head(about, "vllm", 8000, more)
        + f"""model="{base}"
set --{pinned}{tokenizer} \\
  {address(8000)} \\
  --served-model-name {shlex.quote(about.base.name or "base")} \\
  --enable-lora --lora-modules {shlex.quote(about.name)}="$here" --max-loras 1 --max-lora-rank {rank} \\
  --max-model-len {context(about)}{vllm_parsers(about)} \\
  --chat-template {TEMPLATE} \\
  --generation-config "$here" --override-generation-config {GREEDY} "$@"
{RUN_VLLM}"""
    )


def sglang(about: About) -> str:
    """SGLang reads the quantization from config.json and generation_config.json's stop tokens by itself."""
    more = "# Requests must say `temperature: 0` to get the answers that were measured.\n"
    return (
        head(about, "sglang", 30000, more)
        + f"""export HF_HUB_OFFLINE=1
exec "${{SGLANG_PYTHON:-python3}}" -m sglang.launch_server --model-path "$here" \\
  {address(30000)} \\
  --served-model-name {shlex.quote(about.name)} \\
  --context-length {context(about)}{sglang_parsers(about)} \\
  --chat-template {TEMPLATE} "$@"
"""
    )


def vllm_parsers(about: About) -> str:
    """vLLM's flags that give calls and thoughts in fields of their own; without the first it refuses `tools`."""
    flags = f" \\\n  --enable-auto-tool-choice --tool-call-parser {about.calls.vllm}" if about.calls.vllm else ""
    return flags + (f" \\\n  --reasoning-parser {about.thoughts.vllm}" if about.thoughts.vllm else "")


def sglang_parsers(about: About) -> str:
    """SGLang's flags for the same."""
    flags = f" \\\n  --tool-call-parser {about.calls.sglang}" if about.calls.sglang else ""
    return flags + (f" \\\n  --reasoning-parser {about.thoughts.sglang}" if about.thoughts.sglang else "")


def llamacpp(about: About) -> str:
    """llama-server shares its context among the slots, so it is told the product."""
    more = "# PARALLEL requests are answered at once, each with a CONTEXT of its own.\n"
    thoughts = "deepseek" if about.thoughts != Parsers() else "none"  # in `reasoning_content`, or where they stand
    return (
        head(about, "llamacpp", 8080, more)
        + f"""parallel=${{PARALLEL:-4}}
context={context(about)}
exec "${{LLAMA_SERVER:-llama-server}}" --model "$here"/{shlex.quote(the_gguf(about))} \\
  {address(8080)} \\
  --alias {shlex.quote(about.name)} \\
  --ctx-size $((context * parallel)) --parallel "$parallel" \\
  --jinja --chat-template-file {TEMPLATE} --reasoning-format {thoughts} --temp 0 "$@"
"""
    )


def modelfile(about: About) -> str:
    """Ollama: no TEMPLATE is given, for Ollama's own language is not Jinja and a guessed one would differ."""
    stops = "".join(f"PARAMETER stop {quoted(token)}\n" for token in about.stop_tokens)
    return f"""# {one_line(about.name)} ({about.format}) in Ollama:
#   {how_to_start(MODELFILE, about)} && ollama run {shlex.quote(about.name.lower())}
# Ollama renders no Jinja: it takes the one of its own templates that is nearest to the file's. Look at what it took,
#   ollama show --template {shlex.quote(about.name.lower())}
# and hold it against chat_template.jinja, or let `python -m workbench verify` do that with this engine.
FROM ./{the_gguf(about)}
PARAMETER temperature 0
PARAMETER num_ctx {about.context_length or DEFAULT_CONTEXT}
{stops}"""


def quoted(token: str) -> str:
    """A stop token as a Modelfile's string."""
    return f'"""{token}"""' if '"' in token or "\n" in token else f'"{token}"'


def the_gguf(about: About) -> str:
    """The bundle's one GGUF file; WorkbenchError when it names none."""
    name = gguf_file(about)
    if name is None:
        raise WorkbenchError("no .gguf file among the weights", where=f"bundle.{about.format}")
    return name
