"""On-policy distillation on tiny models: what is said and held against the teacher, how a step is cut, what resumes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distil_project import SMALL, run_of, with_answers
from teacher_project import Project, project, questions
from token_rows import method, rows
from workbench.errors import RequestError
from workbench.recipe import Method, Teach
from workbench.records import TokenRow
from workbench.terms.policy import Duty, write_duties
from workbench.training.batches import collate
from workbench.training.job import Job
from workbench.training.loop import train
from workbench.training.losses import forward_kl
from workbench.training.open_teacher import load_teacher
from workbench.training.own_answers import OtherWords, TokenByToken, answered, by_bytes, on_own_answers
from yes_teacher import taught_yes

NEW = 6  # tokens that the student may say


@pytest.fixture(autouse=True)
def untracked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's part of these lives is held elsewhere, and opening its store takes longer than they do."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("workbench.stages.lifecycle.feed_tracking", lambda recipe, run: None)


@pytest.fixture(scope="session")
def taught_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught to answer 10 11 12 and to stop: a teacher of the plain rows."""
    folder = tmp_path_factory.mktemp("taught")
    how = Method(kind="full", learning_rate=1e-2, max_steps=40, epochs=50.0, evaluations=1, sample_answers=0)
    train(Job(tiny_model, how, rows(40), folder, seed=1, dtype="float32", device="cpu", threads=1))
    return folder / "model"


def other_words_model(folder: Path, texts: list[str]) -> Path:
    """A tiny model with the words of these texts, a stop token of its own, and a chat template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts * 4,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="</s>", bos_token="<s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another vocabulary, which cuts the student's answers as the student's own does."""
    return other_words_model(tmp_path_factory.mktemp("other"), ["question number item shelf in stock, system user"])


@pytest.fixture(scope="session")
def strange_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another vocabulary, in which the student's answer is one word."""
    return other_words_model(tmp_path_factory.mktemp("strange"), ["gold gold gold or no"])


@pytest.fixture(scope="session")
def other_yes(other_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_yes(other_model, tmp_path_factory.mktemp("on_policy_other"))


def go(base: Path, weights: Path, out: Path, events: list[dict[str, Any]] | None = None, *,
       teach: dict[str, Any] | None = None, other: OtherWords | None = None, start: Path | None = None,
       seed: int = 3, dtype: str = "float32", stop_at: int | None = None,
       **changes: Any) -> dict[str, Any]:  # fmt: skip
    """A short training; `stop_at` a step breaks it off as a kill would, after that step's checkpoint."""

    def event(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append({"kind": kind, **fields})
        if stop_at is not None and fields.get("name") == "train/loss" and fields["step"] > stop_at:
            raise EOFError("killed")

    how = method(sample_answers=0, **changes)
    how = replace(how, teach=Teach(**{"max_new_tokens": NEW, "divergence": "forward_kl", **(teach or {})}))
    job = Job(base, how, rows(40), out, validation=rows(8, start=100), seed=seed, dtype=dtype, device="cpu", threads=1,
              start=start, event=event)  # fmt: skip
    return train(on_own_answers(job, weights, other))


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [e["value"] for e in events if e.get("name") in ("train/loss", "validation/loss")]


@pytest.mark.slow
def test_the_distance_to_the_teacher_on_the_student_s_own_answers_falls(
    tiny_model: Path, taught_model: Path, tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    told = go(
        tiny_model, taught_model, tmp_path, events, kind="full", learning_rate=5e-3, max_steps=40, dtype="bfloat16"
    )
    first, *_, last = (e["value"] for e in events if e.get("name") == "train/loss")
    assert last < 0.3 * first
    assert told["last_validation_loss"] < 0.8 * told["first_validation_loss"]
    assert json.loads((tmp_path / "summary.json").read_text()) == told
    said = [e["value"] for e in events if e.get("name") == "train/answer_tokens"]
    assert len(said) == 40
    assert sum(said[-10:]) < sum(said[:10]), "it has learned to stop"
    assert told["trained_tokens"] == pytest.approx(8 * sum(said))
    assert {e["step"] for e in events if e.get("name") == "validation/loss"} == {13, 27, 40}


@pytest.mark.slow
@pytest.mark.parametrize(
    "teach",
    [{"divergence": "jsd", "temperature": 2.0}, {"divergence": "skew_kl", "samples": 2}],
)
def test_one_by_eight_two_by_four_and_eight_by_one_give_the_same_loss_curve(
    tiny_model: Path, taught_model: Path, tmp_path: Path, teach: dict[str, Any]
) -> None:
    curves = []
    for micro in (8, 4, 1):
        events: list[dict[str, Any]] = []
        go(tiny_model, taught_model, tmp_path / str(micro), events, teach=teach, micro_batch_size=micro, max_steps=3,
           learning_rate=2e-3)  # fmt: skip
        curves.append(losses(events))
    assert len(curves[0]) == 3 + 3
    for cut in curves[1:]:
        assert cut == pytest.approx(curves[0], abs=1e-4)


def test_an_adapter_moves_in_its_own_dtype_and_the_base_and_the_teacher_do_not(
    tiny_model: Path, taught_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    before = (taught_model / "model.safetensors").read_bytes()
    told = go(tiny_model, taught_model, tmp_path, dtype="bfloat16", dropout=0.1)
    assert told["moved_tensors"] == told["trained_tensors"] == 2 * 2 * 7
    made = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    assert (taught_model / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    tiny_model: Path, taught_model: Path, tmp_path: Path
) -> None:
    changes = {"save_minutes": 1e-9, "dropout": 0.1, "micro_batch_size": 4, "max_steps": 7}
    with pytest.raises(EOFError):
        go(tiny_model, taught_model, tmp_path / "cut", stop_at=4, **changes)
    events: list[dict[str, Any]] = []
    resumed = go(tiny_model, taught_model, tmp_path / "cut", events, **changes)
    assert resumed["resumed_from"] == 4
    assert [e["step"] for e in events if e.get("name") == "train/loss"] == [5, 6, 7]
    whole = go(tiny_model, taught_model, tmp_path / "whole", **changes)
    for key in ("first_validation_loss", "last_validation_loss", "best_validation_loss"):
        assert resumed[key] == pytest.approx(whole[key], abs=1e-5)
    for key in ("best_step", "total_tokens", "trained_tokens", "moved_tensors"):
        assert resumed[key] == whole[key]


def test_checkpoints_of_another_teacher_are_not_gone_on_from(
    tiny_model: Path, taught_model: Path, tmp_path: Path
) -> None:
    other = AutoModelForCausalLM.from_pretrained(taught_model, dtype=torch.float32)
    other.model.norm.weight.data.mul_(0.9)
    other.save_pretrained(tmp_path / "other")
    go(tiny_model, taught_model, tmp_path, max_steps=2)
    assert go(tiny_model, taught_model, tmp_path, max_steps=2)["resumed_from"] == 2
    events: list[dict[str, Any]] = []
    assert go(tiny_model, tmp_path / "other", tmp_path, events, max_steps=2)["resumed_from"] is None
    assert any("starting over" in e.get("text", "") for e in events)


@pytest.mark.slow
def test_the_seed_decides_what_is_said_and_a_second_kind_goes_on_from_the_first_ones_adapter(
    tiny_model: Path, taught_model: Path, tmp_path: Path
) -> None:
    curves = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        events: list[dict[str, Any]] = []
        go(tiny_model, taught_model, tmp_path / name, events, seed=seed, max_steps=7)
        curves.append(losses(events))
        torch.rand(7)  # whatever the global generator has been used for
    assert curves[0] == curves[1] != curves[2]
    events = []
    go(
        tiny_model,
        taught_model,
        tmp_path / "d",
        events,
        start=tmp_path / "a" / "adapter",
        learning_rate=1e-5,
        max_steps=2,
    )
    assert losses(events)[0] < curves[0][0] - 0.2


def reference(model: Any, teacher: Any, made: list[TokenRow], words: int) -> float:
    """Forward KL at every answer token, written out plainly."""
    total = 0.0
    for row in made:
        ids, first = torch.tensor([row.input_ids]), row.answer_start
        with torch.no_grad():
            q, p = (one(ids).logits[0, first - 1 : -1, :words].double().log_softmax(-1) for one in (model, teacher))
        total += float((p.exp() * (p - q)).sum())
    return total


def padded(model: Path, folder: Path, extra: int) -> Path:
    """The model with more rows of embedding and head than it has words; they would win every softmax."""
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    words = made.config.vocab_size
    made.resize_token_embeddings(words + extra, mean_resizing=False)
    with torch.no_grad():
        made.get_input_embeddings().weight[words:] = 3.0
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def test_the_loss_is_the_plain_sum_and_rows_without_a_word_are_no_part_of_it(
    tiny_model: Path, taught_model: Path, tmp_path: Path
) -> None:
    student = AutoModelForCausalLM.from_pretrained(padded(tiny_model, tmp_path / "s", 8), dtype=torch.float32)
    teacher = load_teacher(padded(taught_model, tmp_path / "t", 24), dtype="float32", device="cpu")
    words = student.config.vocab_size - 8
    made = [answered(row, [10 + n % 3, 11, 40][: 1 + n % 3]) for n, row in enumerate(rows(7))]
    scored = TokenByToken(teacher, forward_kl, 1.0)
    batch = collate(list(enumerate(made)), 2)
    found = []
    for plain in (True, False):
        student.zero_grad()
        loss = scored.loss(student, batch, plain=plain, vocabulary=words)
        loss.backward()
        found.append((loss.item(), student.get_output_embeddings().weight.grad.clone()))
    assert found[0][0] == pytest.approx(reference(student, teacher.model, made, words), rel=1e-4)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2e-3, atol=2e-4)
    assert not found[0][1][words:].any()
    assert scored.items(batch) == sum(sum(row.trained) for row in made)


def test_a_student_never_says_a_row_of_its_head_that_is_no_word(
    tiny_model: Path, taught_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    said: list[int] = []
    from workbench.training import own_answers

    real = own_answers.sampled_answers

    def heard(*settings: Any) -> list[list[int]]:
        answers = real(*settings)
        if settings[-1][0] == "step":
            said.extend(token for answer in answers for token in answer)
        return answers

    monkeypatch.setattr(own_answers, "sampled_answers", heard)
    base = padded(tiny_model, tmp_path / "s", 8)
    words = len(AutoTokenizer.from_pretrained(base))
    told = go(base, padded(taught_model, tmp_path / "t", 24), tmp_path / "out", max_steps=3, warmup_share=0.0)
    assert len(said) == told["trained_tokens"] > 50
    assert max(said) < words


def gold_between(student: Path, teacher: Path, stop: int, asked: list[TokenRow], teach: Teach, folder: Path) -> Any:
    """GOLD's loss with the student's prompts as the teacher's own."""
    held = load_teacher(teacher, dtype="float32", device="cpu")
    prompts = {row.input_ids[: row.answer_start]: row.input_ids[: row.answer_start] for row in asked}
    return by_bytes(held, student, teacher, OtherWords(prompts, stop), asked, teach, "cpu", folder)


@pytest.mark.parametrize(("divergence", "way"), [("forward_kl", 1), ("reverse_kl", -1)])
def test_gold_between_equal_vocabularies_is_the_mean_kl_of_each_answer(
    tiny_model: Path, taught_model: Path, tmp_path: Path, divergence: str, way: int
) -> None:
    student = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    made = [answered(row, [70 + n, 71, 2][: 1 + n % 3]) for n, row in enumerate(rows(6))]
    made = [row if row.input_ids[-1] == 2 else answered(row, [75, 2]) for row in made]
    scored = gold_between(tiny_model, taught_model, 2, made, Teach(divergence=divergence), tmp_path)
    batch = collate(list(enumerate(made)), 2)
    wanted = 0.0
    for row in made:
        ids, first = torch.tensor([row.input_ids]), row.answer_start
        pair = [one(ids).logits[0, first - 1 : -1].double().log_softmax(-1) for one in (scored.teacher.model, student)][
            ::way
        ]
        wanted += float((pair[0].exp() * (pair[0] - pair[1])).sum(-1).mean())
    found = scored.loss(student, batch, plain=True, vocabulary=None)
    assert found.item() == pytest.approx(wanted, rel=2e-3)  # TRL takes no probability below 1e-8
    found.backward()
    ours = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    own = scored.loss(student, batch, plain=False, vocabulary=None)
    own.backward()
    assert own.item() == pytest.approx(found.item(), rel=1e-4)
    for name, p in student.named_parameters():
        torch.testing.assert_close(p.grad, ours[name], rtol=2e-3, atol=2e-4, msg=name)
    assert scored.items(batch) == 6


@pytest.mark.parametrize("answer", ["yes", "", "naïve 😀", "in stock\n\n</s>"])
def test_an_answer_s_two_sides_hold_the_same_bytes_and_stop_together(
    tiny_model: Path, other_model: Path, tmp_path: Path, answer: str
) -> None:
    scored = gold_between(tiny_model, other_model, 1, rows(2), Teach(), tmp_path)
    own, other = AutoTokenizer.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(other_model)
    ids = own(answer, add_special_tokens=False)["input_ids"]
    left, right = scored.sides([*ids, 2])
    assert own.decode(left.ids[:-1]) == other.decode(right.ids[:-1]) == answer
    assert (left.ids[-1], right.ids[-1]) == (2, 1), "each by its own stop token"
    assert left.spans[-1] == right.spans[-1] == (len(answer.encode()), len(answer.encode()) + 1)
    if ids:
        broken = scored.sides(ids)  # cut before it stopped
        assert [side.ids for side in broken] == [left.ids[:-1], right.ids[:-1]]


def test_an_answer_that_breaks_off_inside_a_character_is_followed_as_far_as_it_is_text(
    tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    scored = gold_between(tiny_model, other_model, 1, rows(2), Teach(), tmp_path)
    own, other = AutoTokenizer.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(other_model)
    whole, smile = (own(text, add_special_tokens=False)["input_ids"] for text in ("ok", "😀"))
    assert len(smile) > 1, "its bytes are tokens of their own"
    left, right = scored.sides([*whole, *smile[:-1], 2])
    assert left.ids == whole
    assert other.decode(right.ids) == "ok"


@pytest.mark.slow
def test_gold_s_loss_does_not_depend_on_how_a_step_is_cut_and_falls(
    tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    asked = [*rows(40), *rows(8, start=100)]
    prompts = {row.input_ids[: row.answer_start]: (0, 60 + n % 9) for n, row in enumerate(asked)}
    other, curves = OtherWords(prompts, 1), []
    for micro in (8, 2):
        events: list[dict[str, Any]] = []
        told = go(tiny_model, other_model, tmp_path / str(micro), events, other=other, micro_batch_size=micro,
                  max_steps=10, kind="full", learning_rate=3e-3)  # fmt: skip
        curves.append(losses(events))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert told["last_validation_loss"] < told["first_validation_loss"] - 0.01


def test_gold_refuses_a_divergence_that_it_does_not_have(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="GOLD has no skew_kl"):
        gold_between(tiny_model, other_model, 1, rows(2), Teach(divergence="skew_kl"), tmp_path)


def test_answers_are_sampled_from_the_whole_distribution_and_leave_the_global_generator_alone(tiny_model: Path) -> None:
    from workbench.training.own_answers import sampled_answers
    from workbench.training.sampling import Asking

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    prompts = [row.input_ids[: row.answer_start] for row in rows(6)]

    def ask(moment: tuple[str, int], temperature: float = 1.0, padding: range = range(0)) -> list[list[int]]:
        how = Asking(1, temperature, 7, 3, 2)
        return sampled_answers(model, prompts, how, {2}, padding, moment)

    before = torch.get_rng_state()
    first = ask(("step", 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert max(map(len, first)) == 7
    assert all(2 not in answer[:-1] for answer in first)
    assert len({token for answer in first for token in answer}) > 30, "a random model says anything"
    model.generation_config.repetition_penalty, model.generation_config.top_k = 50.0, 1
    assert ask(("step", 4)) == first, "whatever its folder says of decoding"
    assert ask(("step", 5)) != first
    assert ask(("step", 4), temperature=0.3) != first
    assert all(token >= 200 for answer in ask(("step", 4), padding=range(200)) for token in answer)


# Through the door.


def own(folder: Path, weights: Path, **teacher: Any) -> Project:
    """A project whose teacher is a folder of weights, and whose rows have answers of their own."""
    made = project(folder, questions(24), "", **{"api": "none", "weights": f"dir:{weights}", "route": "own",
                                                "family": "", **teacher})  # fmt: skip
    recipe = json.loads((folder / "mine.yaml").read_text())
    recipe["teacher"].pop("base_url")
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    with_answers(made)
    return made


def words_for(model: Path, *more: str) -> list[str]:
    return [*SMALL, f"model.source=dir:{model}", "method.distil=[on_policy]", "method.teach.max_new_tokens=4",
            "method.sample_answers=1", "launch.threads=1", *more]  # fmt: skip


@pytest.mark.slow
def test_weights_teach_rows_of_their_own_with_headroom_and_development_on_gold(
    tiny_model: Path, yes_model: Path, tmp_path: Path
) -> None:
    made = own(tmp_path, yes_model)
    done = made.run("train", *words_for(tiny_model), "until=merge")
    assert done.returncode == 0, done.stderr
    for said in (
        "terms of the teacher's weights: allow",
        "the teacher scores 1.000, base 0.000 on 12 gold development rows",
        "the teacher has the student's own vocabulary (", "at every token of the student's answers",
        "24 prompts; the student answers each 1 times an epoch",
    ):  # fmt: skip
        assert said in done.stderr, said
    run = run_of(made)
    facts = json.loads((run / "run.json").read_text())["stages"]["train"]["facts"]
    assert (facts["teacher"], facts["terms"]) == (f"dir:{yes_model}", "allow")
    assert facts["moved_tensors"] == facts["trained_tensors"]
    assert json.loads((run / "train" / "development.json").read_text())["scores"]
    names = [json.loads(line).get("name") for line in (run / "events.jsonl").read_text().splitlines()]
    for name in ("train/loss", "validation/loss", "development/score", "train/answer_tokens", "headroom/lead"):
        assert name in names
    assert "nothing left to do" in made.run("train", *words_for(tiny_model), "until=merge").stderr


@pytest.mark.slow
def test_another_vocabulary_takes_gold_and_says_so(tiny_model: Path, other_yes: Path, tmp_path: Path) -> None:
    made = own(tmp_path, other_yes)
    done = made.run("train", *words_for(tiny_model), "until=train")
    assert done.returncode == 0, done.stderr
    assert "the teacher's vocabulary is another" in done.stderr
    assert "GOLD (trl.experimental.gold, beta 0) aligns the answers by their bytes" in done.stderr
    assert "the teacher scores 1.000" in done.stderr
    refused = made.run("train", *words_for(tiny_model, "method.teach.divergence=skew_kl"), "until=train")
    assert refused.returncode == 2
    assert "GOLD has no skew_kl" in refused.stderr


def test_a_vocabulary_that_cuts_the_answers_otherwise_is_refused_before_a_step_is_taken(
    tiny_model: Path, strange_model: Path, tmp_path: Path
) -> None:
    made = own(tmp_path, strange_model)
    done = made.run("train", *words_for(tiny_model, "method.teach.development_rows=0"), "until=train")
    assert done.returncode == 2, done.stderr
    assert "GOLD teaches a student what is wrong" in done.stderr
    assert "a teacher with the student's own vocabulary" in done.stderr


def test_without_weights_or_with_a_prompt_that_leaves_no_room_the_request_is_wrong(
    tiny_model: Path, yes_model: Path, tmp_path: Path
) -> None:
    made = own(tmp_path, yes_model)
    done = made.run("train", *words_for(tiny_model, "teacher.weights=null"))
    assert done.returncode == 2
    assert "teacher.weights" in done.stderr
    assert "mlflow:models:/NAME@champion" in done.stderr
    done = made.run("train", *words_for(tiny_model, "method.teach.max_new_tokens=2000"), "until=train")
    assert done.returncode == 2
    assert "an answer of 2,000 may follow it" in done.stderr
    assert "raise method.max_length, lower method.teach.max_new_tokens, or leave such rows out" in done.stderr


def test_a_teacher_that_is_the_base_itself_has_nothing_to_teach(tiny_model: Path, tmp_path: Path) -> None:
    made = own(tmp_path, tiny_model)
    done = made.run("train", *words_for(tiny_model), "until=train")
    assert done.returncode == 3
    assert "the teacher scores 0.000, base 0.000" in done.stderr


@pytest.mark.slow
def test_terms_of_open_weights_are_judged_and_their_duties_kept(
    tiny_model: Path, yes_model: Path, tmp_path: Path
) -> None:
    weights = shutil.copytree(yes_model, tmp_path / "weights")
    write_duties(weights, [Duty("notice", "Say thank you.", "a licence")])
    made = own(tmp_path, weights, route="weights", family="somebody's")
    words = words_for(tiny_model)
    shown = made.run("plan", *words)
    assert shown.returncode == 0, shown.stderr
    assert "review: the terms table knows no family" in shown.stdout
    refused = made.run("train", *words)
    assert refused.returncode == 2
    assert "teacher.terms_acknowledged" in refused.stderr
    denied = made.run("train", *words, "teacher.family=qwen2.5-3b", "teacher.commercial=true")
    assert denied.returncode == 2
    signed = "\"teacher.terms_acknowledged='A. Person, 2026-11-21, read it'\"".strip('"')
    done = made.run("train", *words, signed, "until=train")
    assert done.returncode == 0, done.stderr
    told = json.loads((run_of(made) / "train" / "duties.json").read_text())["duties"]
    assert "Say thank you." in {duty["text"] for duty in told}


@pytest.mark.slow
def test_the_whole_life_of_an_on_policy_student_goes_on_after_a_kill(
    tiny_model: Path, yes_model: Path, tmp_path: Path
) -> None:
    import time

    weights = shutil.copytree(yes_model, tmp_path / "weights")
    write_duties(weights, [Duty("notice", "Say thank you.", "a licence")])
    made = own(tmp_path, weights)
    words = [*words_for(tiny_model, "method.max_steps=200", "method.epochs=99", "method.save_minutes=0.001"),
             "method.kind=full", "method.learning_rate=3e-3", "until=evaluate"]  # fmt: skip
    child = made.start("train", *words)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and child.poll() is None:
        (*logs,) = tmp_path.glob("experiments/mine/*/events.jsonl")
        if logs and '"train/loss"' in logs[0].read_text() and '"step": 20' in logs[0].read_text():
            break
        time.sleep(0.05)
    child.kill()
    child.wait()
    done = made.run("train", *words)
    assert "resumed from step" in done.stderr, done.stderr
    assert done.returncode in (0, 3), done.stderr
    told = json.loads((run_of(made) / "merge" / "model" / "duties.json").read_text())["duties"]
    assert "Say thank you." in {duty["text"] for duty in told}, "they travel with the student"
    report = json.loads((run_of(made) / "evaluate" / "report.json").read_text())
    assert report["arms"]["teacher"]["exact_match"]["value"] == 1.0
    events = [json.loads(line) for line in (run_of(made) / "events.jsonl").read_text().splitlines()]
    losses = [event["value"] for event in events if event.get("name") == "train/loss"]
    assert losses[-1] < losses[0] / 20, "on what it says itself the student has come to the teacher"
    assert any("the teacher's terms" in row["duty"] for row in report["duties"])
