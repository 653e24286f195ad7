"""A bundle before its judge: the key that is trusted, the engine that takes it, and what it must show there."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.bundles.checks import Check
from workbench.bundles.facts import Verified
from workbench.bundles.parity import TOP, Parity, Reference, ServedRow, compare, measure, parity_checks, top_of
from workbench.engines.device import device_of, keep_freed_memory, release_memory
from workbench.engines.served import EXACT, available, engine_for, serve_bundle
from workbench.engines.transformers import answers_of, load, prompt_tokens
from workbench.errors import GateError, RequestError
from workbench.formats import find_format
from workbench.signing_keys import public_key_of, signing_key

HERE = "transformers"
Score = Callable[[str, str], float]  # (expected, answer) → the deciding metric


@dataclass(frozen=True)
class Limits:
    """What a served bundle must keep to, and how it is asked; written into its manifest."""

    most_kl: float
    least_agreement: float
    score_margin: float
    max_new_tokens: int
    context: int


def limits_of(manifest: Mapping[str, Any]) -> Limits:
    """The limits that a bundle was proven by when it was made."""
    limits = manifest.get("limits") or {}
    return Limits(
        float(limits.get("most_kl", 0.02)),
        float(limits.get("least_agreement", 0.8)),
        float(limits.get("score_margin", 0.1)),
        int(limits.get("max_new_tokens", 64)),
        int(limits.get("context", 2048)),
    )


def trusted_key(named: str) -> Path:
    """The public key that signatures are held against: the one named, else this user's own."""
    return Path(named).expanduser() if named else public_key_of(signing_key())


def choose_engine(folder: Path, format: str, wanted: str = "auto") -> str:
    """The engine to load a bundle in: the one asked for, else the one that serves it, else transformers.

    RequestError when the one asked for cannot be started here.
    """
    known = find_format(format)  # None for a model in 16 bits, and for an adapter
    takers = {taker.engine: taker for taker in known.takers} if known else {}
    engine = wanted
    if wanted == "auto":
        engine = known.served_by if known else engine_for(folder)
    if engine == HERE:
        return HERE
    if known and engine not in takers:
        raise RequestError(f"{engine} does not take {format}", where="engine", remedy=f"take {' or '.join(takers)}")
    missing = available(engine)
    if missing is None and engine in takers and takers[engine].gpu_only and engine == "vllm" and not vllm_has_gpu():
        missing = f"vLLM has no CPU kernels for {format}"
    if missing is None:
        return engine
    if wanted == "auto" and (HERE in takers if known else engine == "vllm"):
        return HERE
    raise RequestError(f"{engine} cannot be started here", where="engine", remedy=missing)


def vllm_has_gpu() -> bool:
    """Whether the vLLM environment sees a GPU."""
    import os

    from workbench.engines import vllm

    return vllm.has_gpu(Path(os.environ[vllm.VARIABLE]))


def ask_engine(
    folder: Path,
    engine: str,
    references: Sequence[Reference],
    limits: Limits,
    *,
    score: Score,
    threads: int | None = None,
    base: Path | None = None,
    token_text: Callable[[int], str] | None = None,
) -> tuple[Parity, list[Check]]:
    """Load the bundle in the engine, ask it every reference, and hold it against them."""
    if engine == HERE:
        served = measure_here(folder, references, max_new_tokens=limits.max_new_tokens, base=base)
    else:
        parallel = 4 if engine in EXACT else 1
        options: dict[str, Any] = {"context": limits.context, "parallel": parallel, "threads": threads, "base": base}
        with serve_bundle(folder, engine, **options) as server:
            served = measure(server, references, max_new_tokens=limits.max_new_tokens)
    scored = any(row.score is not None for row in references)
    judge = (lambda row, answer: score(row.expected, answer)) if scored else None
    parity = compare(references, served, judge)
    checks = parity_checks(
        parity,
        most_kl=limits.most_kl,
        least_agreement=limits.least_agreement,
        score_margin=limits.score_margin,
        token_text=token_text,
    )
    return parity, [Check("loads", True, f"{engine} {version_of(engine)} loaded it and answered"), *checks]


def refuse_failed(checks: Sequence[Check], where: str) -> None:
    """GateError naming every check that failed; nothing when all passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        reasons = "; ".join(f"{check.name}: {check.why}" for check in failed)
        raise GateError(
            f"the bundle does not stand: {reasons}",
            where=where,
            remedy="fetch or make it again: nothing is served, sent or registered from this one",
        )


def verified_in(engine: str) -> Verified:
    """The engine as the card names it."""
    return Verified(engine, version_of(engine), f"{platform.machine()} CPU" if engine != "vllm" else hardware_of_vllm())


def hardware_of_vllm() -> str:
    """What vLLM ran on."""
    return "CUDA GPU" if vllm_has_gpu() else f"{platform.machine()} CPU"


def version_of(engine: str) -> str:
    """The engine's version, as far as it is known here."""
    package = {"llamacpp": "xllamacpp", HERE: "transformers"}.get(engine)
    if package:
        return metadata.version(package)
    if engine == "vllm":
        from workbench.engines import vllm

        return vllm.version()
    return ""


def figures(parity: Parity) -> dict[str, Any]:
    """A parity's figures for a manifest: without the row that was farthest off."""
    return {k: v for k, v in asdict(parity).items() if k not in ("difference", "kl_max_id")}


# What transformers, in this process, makes of a bundle's files: for where the engine that serves it is not here.


def measure_here(
    folder: Path,
    references: Sequence[Reference],
    *,
    top: int = TOP,
    max_new_tokens: int,
    base: Path | None = None,
) -> list[ServedRow]:
    """As `parity.measure`, in transformers; `base` is the folder of the model under an unmerged adapter."""
    import torch
    from torch.nn import functional

    keep_freed_memory()
    place = torch.device(device_of())
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8") if base else None
    adapter = folder if base else None
    model, tokenizer = load(base or folder, adapter, place, template)
    measured = []
    for row in references:
        ids = prompt_tokens(tokenizer, row.messages, row.tools)
        whole = torch.tensor([[*row.prompt_ids, *row.answer_ids]], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=whole, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        measured.append((tuple(ids), tuple(top_of(functional.log_softmax(logits.float(), dim=-1), top))))
    prompts, tools = [row.messages for row in references], [row.tools for row in references]
    answers = dict(answers_of(model, tokenizer, prompts, max_new_tokens, tools=tools))
    del model
    release_memory()
    return [ServedRow(ids, likely, answers[index]) for index, (ids, likely) in enumerate(measured)]
