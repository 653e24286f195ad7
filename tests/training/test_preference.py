"""Preference distillation: the loss against its paper, what makes a pair, and a run that is cut, killed or chained."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacher_project import project, questions
from teacher_server import teacher_server
from token_rows import method, rows
from workbench.data.chat import load_tokenizer
from workbench.errors import WorkbenchError
from workbench.recipe import Evaluate, Method, Recipe, Teach
from workbench.records import Example, Message, TokenRow
from workbench.runs import Run
from workbench.stages.train.kinds import preference as stage
from workbench.stages.train.task import Start, Task
from workbench.training import dpo, sampling
from workbench.training.batches import collate
from workbench.training.dpo import Pair, on_pairs, pair_logprobs, preference_loss
from workbench.training.job import Job
from workbench.training.loop import train
from workbench.training.sampling import Asking, Sample, answers, sampled
from workbench.training.targets import Rejected

ASKING = Asking(samples=1, temperature=1.0, max_new_tokens=6, seed=5, stop=2)


def pairs(count: int, start: int = 0) -> list[Pair]:
    """The rows of the plain tests, each against an answer of another length: 30 31 … stop."""
    made = []
    for n, chosen in enumerate(rows(count, start), start):
        prompt = chosen.input_ids[:-4]
        ids = (*prompt, *(30 + j for j in range(1 + n % 5)), 2)
        made.append(Pair(chosen, TokenRow(chosen.id, ids, tuple(j >= len(prompt) for j in range(len(ids))))))
    return made


def go(base: Path, out: Path, events: list[Any] | None = None, dtype: str = "float32", **settings: Any) -> Any:
    told = events if events is not None else []
    start = settings.pop("start", None)
    event = settings.pop("event", lambda kind, **fields: told.append({"kind": kind, **fields}))
    how = method(**{"learning_rate": 2e-3, "sample_answers": 0, **settings})
    job = Job(base, how, [], out, seed=3, dtype=dtype, device="cpu", threads=1, start=start, event=event)
    return train(on_pairs(job, pairs(40), pairs(8, start=100)))


def curve(events: Sequence[dict[str, Any]], *names: str) -> list[float]:
    return [e["value"] for e in events if e.get("name") in names]


def likelihood(model: Any, row: TokenRow, vocabulary: int | None = None) -> torch.Tensor:
    """log π(y|x) written out: the sum over the answer's tokens."""
    logits = model(torch.tensor([row.input_ids])).logits[0][:, :vocabulary]
    at = [i for i, t in enumerate(row.trained) if t]
    return sum(logits[i - 1].log_softmax(-1)[row.input_ids[i]] for i in at)  # type: ignore[return-value]


@pytest.mark.parametrize(("plain", "vocabulary"), [(True, None), (True, 200), (False, 200)])
def test_the_loss_and_its_gradient_are_those_of_the_paper_s_equation_7(
    tiny_model: Path, plain: bool, vocabulary: int | None
) -> None:
    beta, made = 0.3, pairs(7)
    reference = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5 - 30
    exact = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for pair, (chosen, rejected) in zip(made, reference, strict=True):
        ratios = (
            likelihood(exact, pair.chosen, vocabulary) - chosen,
            likelihood(exact, pair.rejected, vocabulary) - rejected,
        )
        expected = expected - torch.log(1 / (1 + torch.exp(-beta * (ratios[0] - ratios[1]))))
    expected.backward()

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    targets = {pair.chosen.id: Rejected(pair.rejected) for pair in made}
    batch = collate([(n, pair.chosen) for n, pair in enumerate(made)], 2, targets)
    loss, margin = preference_loss(pair_logprobs(model, batch, plain=plain, vocabulary=vocabulary), reference, beta)
    loss.sum().backward()
    assert loss.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-m)) for m in margin.tolist()])
    ours = torch.cat([p.grad.double().flatten() for p in model.parameters()])
    theirs = torch.cat([p.grad.flatten() for p in exact.parameters()])
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.slow
def test_one_by_eight_two_by_four_and_eight_by_one_give_the_same_loss_curve(tiny_model: Path, tmp_path: Path) -> None:
    told: dict[int, list[float]] = {}
    for micro in (8, 4, 1):
        events: list[dict[str, Any]] = []
        go(tiny_model, tmp_path / str(micro), events, micro_batch_size=micro, max_steps=6)
        told[micro] = curve(events, "train/loss", "validation/loss", "train/reward_margin")
        assert len(told[micro]) == 6 + 3 + 6
    assert told[8][-1] != pytest.approx(told[8][0], abs=1e-3), "the student moves"
    for micro in (4, 1):
        assert told[micro] == pytest.approx(told[8], abs=1e-4)


@pytest.mark.parametrize(("kind", "dtype"), [("lora", "float32"), ("full", "bfloat16"), ("qlora", "bfloat16")])
def test_the_chosen_answer_rises_against_the_rejected_one_and_only_what_trains_moves(
    tiny_model: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    events: list[dict[str, Any]] = []
    summary = go(tiny_model, tmp_path, events, dtype, kind=kind, max_steps=20, dropout=0.1, learning_rate=1e-2)
    assert summary["best_validation_loss"] < 0.6 < math.log(2), "which is what it costs at the start"
    assert summary["moved_tensors"] > 0
    if kind != "full":
        assert summary["moved_tensors"] == summary["trained_tensors"], "and no tensor of the base, or it had ended"
    for name in ("loss", "learning_rate", "grad_norm", "reward_margin", "reward_accuracy"):
        assert [e["step"] for e in events if e.get("name") == f"train/{name}"] == list(range(1, 21))
    assert curve(events, "train/reward_accuracy")[-1] > 0.9
    assert curve(events, "train/reward_margin")[-1] > 0.3
    assert any("no dropout" in e.get("text", "") for e in events)
    assert (tmp_path / ("model" if kind == "full" else "adapter") / "config.json").exists() == (kind == "full")


def test_the_reference_is_the_student_as_the_kind_starts_in_a_chain_too(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    first = tmp_path / "text"
    how = method(sample_answers=0, evaluations=1)
    train(Job(tiny_model, how, rows(40), first, seed=3, dtype="float32", device="cpu", threads=1))
    told = {}
    for name, start in (("alone", None), ("chain", first / "adapter")):
        events: list[dict[str, Any]] = []
        go(tiny_model, tmp_path / name, events, start=start, max_steps=2)
        assert curve(events, "train/loss")[0] == pytest.approx(math.log(2), abs=1e-4), "nothing has moved yet"
        told[name] = json.loads((tmp_path / name / "reference.json").read_text())["logprobs"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    made = [*pairs(40), *pairs(8, start=100)]
    assert told["alone"].keys() == {pair.chosen.id for pair in made}
    with torch.no_grad():
        for pair in made[::9]:
            both = [float(likelihood(base, row)) for row in (pair.chosen, pair.rejected)]
            assert told["alone"][pair.chosen.id] == pytest.approx(both, rel=1e-5)
        moved = PeftModel.from_pretrained(base, str(first / "adapter")).eval()
        for pair in made[::9]:
            both = [float(likelihood(moved, row)) for row in (pair.chosen, pair.rejected)]
            assert told["chain"][pair.chosen.id] == pytest.approx(both, rel=1e-5)
            assert told["chain"][pair.chosen.id] != pytest.approx(told["alone"][pair.chosen.id], rel=1e-3)


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_against_the_same_reference_and_ends_as_if_it_had_not_been(
    tiny_model: Path, tmp_path: Path
) -> None:
    class Cut(BaseException):
        pass

    def cut(kind: str, **fields: Any) -> None:
        if fields.get("name") == "train/loss" and fields["step"] == 7:
            raise Cut

    with pytest.raises(Cut):
        go(tiny_model, tmp_path / "cut", save_minutes=1e-9, event=cut)
    before = (tmp_path / "cut" / "reference.json").stat().st_mtime_ns
    events: list[dict[str, Any]] = []
    again = go(tiny_model, tmp_path / "cut", events, save_minutes=1e-9)
    whole = go(tiny_model, tmp_path / "whole")
    assert again["resumed_from"] == 6
    assert (tmp_path / "cut" / "reference.json").stat().st_mtime_ns == before
    assert not any("the reference" in e.get("text", "") for e in events)
    assert again["last_validation_loss"] == pytest.approx(whole["last_validation_loss"], abs=1e-5)
    assert again["total_tokens"] == whole["total_tokens"]


def test_a_loss_that_is_not_finite_stops_and_names_the_pairs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = dpo.preference_loss, []

    def breaks(*args: Any) -> Any:
        calls.append(1)
        loss, margin = real(*args)
        return loss * (float("nan") if len(calls) == 3 else 1.0), margin

    monkeypatch.setattr(dpo, "preference_loss", breaks)
    with pytest.raises(WorkbenchError, match=r"loss is nan at step 3, rows (r\d+(, )?){8}"):
        go(tiny_model, tmp_path)
    assert not (tmp_path / "adapter").exists()


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple(range(60, 64 + n % 7)) for n in range(count)]


class Asked:
    """A student that answers with the prompt's length, and stops answering after so many batches."""

    def __init__(self, batches: float = math.inf):
        self.left, self.heard = batches, list[tuple[int, ...]]()

    def __call__(self, asked: Sequence[Sequence[int]], how: Asking, seed: int) -> list[list[Sample]]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.heard += map(tuple, asked)
        return [[Sample(f"{len(p)}\u2028\n", True)] for p in asked]


def test_a_run_cut_while_it_samples_asks_for_no_sample_twice(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    asked = [(*prompt, 100 + n) for n, prompt in enumerate(prompts(300))]
    first, second, third = Asked(5), Asked(), Asked()
    with pytest.raises(KeyboardInterrupt):
        list(answers(first, asked, ASKING, file, of="a", batch_tokens=200))
    with file.open("a") as stream:
        stream.write('{"prompt": 3, "ans')  # a kill in the middle of a line
    told = list(answers(second, asked, ASKING, file, of="a", batch_tokens=200))
    assert sorted(number for number, _ in told) == list(range(300))
    assert all(said == [Sample(f"{len(asked[number])}\u2028\n", True)] for number, said in told)
    assert first.heard
    assert Counter([*first.heard, *second.heard]) == Counter(asked)
    assert list(answers(third, asked, ASKING, file, of="a", batch_tokens=200)) == told, "in the same order again"
    assert not third.heard
    list(answers(third, asked, ASKING, file, of="another student", batch_tokens=200))
    assert len(third.heard) == 300, "another student's answers are not this one's"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"text": "5', '"text": "6', 1),  # as likely an answer as any
        lambda text: text.replace('{"prompt"', "{'prompt'", 1),
        lambda text: text.replace("\n", "\n7\n", 1),
        lambda text: text.replace(', "sha256"', ', "sha255"', 1),
        lambda text: text.replace('"key": "', '"key": "0', 1),
    ],
)
def test_samples_that_are_not_as_they_were_written_are_drawn_again(tmp_path: Path, change: Any) -> None:
    file = tmp_path / "samples.jsonl"
    first = list(answers(Asked(), prompts(300), ASKING, file, of="a", batch_tokens=200))
    text = file.read_text()
    file.write_text(change(text))
    assert file.read_text() != text
    again = Asked()
    assert list(answers(again, prompts(300), ASKING, file, of="a", batch_tokens=200)) == first
    assert len(again.heard) == 300
    assert file.read_text() == text


@pytest.mark.slow
def test_a_damaged_reference_is_taken_once_more_and_the_end_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    class Cut(BaseException):
        pass

    def cut(kind: str, **fields: Any) -> None:
        if fields.get("name") == "train/loss" and fields["step"] == 7:
            raise Cut

    with pytest.raises(Cut):
        go(tiny_model, tmp_path / "cut", save_minutes=1e-9, event=cut)
    path = tmp_path / "cut" / "reference.json"
    whole = path.read_text()
    for damaged in (whole.replace("-2", "-3", 1), whole[:-9], "", "[]"):
        path.write_text(damaged)
        events: list[dict[str, Any]] = []
        go(tiny_model, tmp_path / "cut", events, save_minutes=1e-9)
        assert any("the reference" in e.get("text", "") for e in events)
        assert path.read_text() == whole
    go(tiny_model, tmp_path / "whole")
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_whoever_has_enough_asks_no_further(tmp_path: Path) -> None:
    student = Asked()
    told = answers(student, prompts(300), ASKING, tmp_path / "s", of="a", batch_tokens=200)
    for _ in range(20):
        next(told)
    assert len(student.heard) < 50


class Numbers:
    """A tokenizer that shows ids as numbers."""

    eos_token_id = 2

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def test_samples_come_of_the_seed_and_of_the_model_s_own_distribution(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    how, numbers = replace(ASKING, samples=3), Numbers(model.config.vocab_size)
    first = sampled(model, numbers, prompts(5), how, 7)
    assert [len(said) for said in first] == [3] * 5
    assert sampled(model, numbers, prompts(5), how, 7) == first
    assert sampled(model, numbers, prompts(5), how, 8) != first
    assert len({said.text for told in first for said in told}) == 15, "a random model says something else each time"
    model.generation_config.repetition_penalty, model.generation_config.top_k = 50.0, 1
    assert sampled(model, numbers, prompts(5), how, 7) == first, "whatever its folder says of decoding"
    assert model.generation_config.top_k == 1


def test_samples_end_at_the_stop_token_and_never_hold_padding_of_the_vocabulary(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    named = model.config.vocab_size
    model.resize_token_embeddings(named + 8)
    weight = model.get_output_embeddings().weight.data
    weight[named:] = weight.mean(0) + torch.randn(8, weight.shape[1]) * 10
    weight[2] = 3 * weight[7]  # where the one is unlikely the other is likely, and both come up
    told = sampled(model, Numbers(named), prompts(40), replace(ASKING, samples=4, max_new_tokens=20), 1)
    assert Counter(said.whole for one in told for said in one).keys() == {True, False}
    for said in (said for one in told for said in one):
        ids = [int(word) for word in said.text.split()]
        assert all(i < named and i != 2 for i in ids)
        assert said.whole or len(ids) == 20


def example(name: str, answer: str, text: str = "Which?") -> Example:
    return Example(name, (Message("user", text), Message("assistant", answer)))


def made_of(
    tiny_model: Path, told: list[Example], said: list[Sample], evaluate: Evaluate
) -> tuple[list[Pair], Counter[str]]:
    tokenizer = load_tokenizer(tiny_model, None)
    weights = {e.id: 0.5 + 0.25 * n for n, e in enumerate(told)}
    (question,) = stage.questions(told, weights, tokenizer, 128)
    tally = Counter[str]()
    return stage.pairs_of(question, said, Recipe(evaluate=evaluate), tokenizer, tally), tally


def test_a_sample_that_says_what_the_teacher_says_makes_no_pair(tiny_model: Path) -> None:
    told = [example("a", '{"k": "x", "n": "1"}')]
    said = [
        Sample(text, True)
        for text in ('{"n": "2", "k": "x"}', ' {"k": "x", "n": "1"}\n', '{"k": "y"}', "", '{"k": "y"}')
    ]
    found, tally = made_of(tiny_model, told, said, Evaluate(scorer="json_fields", fields=["k"]))
    assert tally == {stage.SAME: 2, stage.UNUSABLE: 1, stage.AGAIN: 1}
    (pair,) = found
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shown = [tokenizer.decode(row.input_ids) for row in (pair.chosen, pair.rejected)]
    assert shown[0].endswith('assistant\n{"k": "x", "n": "1"}<|im_end|>')
    assert shown[1].endswith('assistant\n{"k": "y"}<|im_end|>')
    for row in (pair.chosen, pair.rejected):
        assert row.trained[-1], "the stop token is trained"
        assert tokenizer.decode([i for i, t in zip(row.input_ids, row.trained, strict=True) if not t]).endswith(
            "assistant\n"
        )
    by_text, _ = made_of(tiny_model, told, said, Evaluate(scorer="exact_match"))
    assert len(by_text) == 2, "other white space is the same, another field is not"


def test_a_sample_is_held_against_every_answer_of_the_teacher_s_and_carries_their_weights(tiny_model: Path) -> None:
    told, said = [example("a", "yes"), example("a~2", "no")], [Sample("no", True), Sample("maybe", False)]
    found, tally = made_of(tiny_model, told, said, Evaluate())
    assert tally == {stage.SAME: 1}
    assert [(pair.chosen.id, pair.chosen.weight) for pair in found] == [("a~against2", 0.5), ("a~2~against2", 0.75)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shown = tokenizer.decode(found[0].rejected.input_ids)
    assert shown.endswith("assistant\nmaybe"), "an answer that was cut is not blamed for a stop token it did not say"


def task_of(base: Path, folder: Path, **changes: Any) -> tuple[Task, list[str]]:
    said: list[str] = []

    def event(kind: str, **fields: Any) -> None:
        said.extend([fields["text"]] if kind == "said" else [])

    how = Method(max_steps=2, evaluations=1, learning_rate=2e-3, teach=Teach(max_new_tokens=4), **changes)
    recipe = Recipe(method=how)
    recipe.model.dtype, recipe.launch.threads = "float32", 1
    told = [example(f"e{n}", "yes", f"Question {n}?") for n in range(60)]
    judges = [example(f"e{n}", "yes", f"Is it {n}?") for n in range(6)]
    return Task(recipe, Run(folder, "mine", "x"), base, told, {}, {}, [], None, event, judges), said


def test_a_student_that_says_all_that_its_teacher_says_ends_the_run_with_the_counts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def echo(*_: Any, **__: Any) -> Iterator[Any]:
        yield lambda asked, how, seed: [[Sample("yes", True)] for _ in asked]

    monkeypatch.setattr(sampling, "student", echo)
    task, _ = task_of(tiny_model, tmp_path)
    with pytest.raises(WorkbenchError) as ended:
        stage.job(task, Start(tiny_model), tmp_path / "out")
    assert ended.value.exit_code == 1
    assert "60 of 60 prompts: 0 pairs come of 60 answers; 60 say what the teacher says" in str(ended.value)
    assert ended.value.where == "method.distil"
    assert "method.teach.sample_temperature" in ended.value.remedy


def test_no_more_prompts_are_asked_than_the_steps_take_and_the_summary_counts_pairs(
    tiny_model: Path, tmp_path: Path
) -> None:
    task, said = task_of(tiny_model, tmp_path)
    task.recipe.evaluate.batch_tokens = 256
    facts = train(stage.job(task, Start(tiny_model), tmp_path / "out"))
    assert 16 <= facts["pairs"] < 30, "two steps of eight"
    assert facts["rows"] == facts["pairs"]
    assert facts["validation_pairs"] == 6
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == facts
    assert any("prompts, which gives the pairs that its steps take" in line for line in said)
    again = train(stage.job(task, Start(tiny_model), tmp_path / "out"))
    assert again["resumed_from"] == 2, "the same pairs, so the same request"


@pytest.mark.slow
def test_a_chain_of_text_and_preference_survives_a_kill_and_ends_through_the_door(
    tiny_model: Path, tmp_path: Path
) -> None:
    words = ["recipe=./mine.yaml", "method.max_steps=6", "method.evaluations=2", "evaluate.max_new_tokens=4",
             "evaluate.batch_tokens=256", "model.sha256=null", "model.name=tiny", "model.family=phi",
             "method.learning_rate=1e-3", f"model.source=dir:{tiny_model}", "method.distil=[text,preference]",
             "method.teach.max_new_tokens=60", "method.teach.headroom=null", "launch.threads=1",
             "until=train"]  # fmt: skip
    with teacher_server(answer=[["", "yes"]]) as server:
        made = project(tmp_path, questions(60), server.url + "/v1")
        assert made.label(*words[1:-1], "until=label").returncode == 0
        child, file = made.start("train", *words), None
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            found = list(tmp_path.glob("experiments/mine/*/.train.staging/samples.jsonl"))
            if found and found[0].read_text().count("\n") > 3:
                file = found[0]
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        child.wait(60)
        assert file is not None, "killed while it sampled"
        kept = file.read_text().split("\n")[:-1]
        bought = len(server.calls())
        done = made.run("train", *words)
        assert len(server.calls()) == bought
    assert done.returncode == 0, done.stderr
    (run,) = [p.parent for p in tmp_path.glob("experiments/mine/*/run.json")]
    lines = (run / "train" / "samples.jsonl").read_text().split("\n")[:-1]
    assert lines[: len(kept)] == kept
    asked = [json.loads(line)["prompt"] for line in lines[1:]]
    assert len(asked) == len(set(asked))
    assert "text: 1 of 2 kinds" not in done.stderr, "the first kind is whole and is not learned again"
    facts = json.loads((run / "run.json").read_text())["stages"]["train"]["facts"]
    assert facts["pairs"] >= 48
    assert facts["moved_tensors"] == facts["trained_tensors"]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [e["step"] for e in events if e.get("name") == "train/reward_margin"]
    assert steps == list(range(7, 13)), "the second kind's steps go on from the first's"
    assert [e["step"] for e in events if e.get("name") == "development/score"] == [3, 6, 9, 12]
    assert not (run / "train" / "before").exists()
    assert os.path.isdir(run / "train" / "adapter")
