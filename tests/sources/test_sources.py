"""Sources: one string, one local path, fetched once, whole or not at all, and never code."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from workbench import sources
from workbench.errors import RequestError, WorkbenchError
from workbench.files import file_sha256
from workbench.sources.gguf_header import read_gguf, read_once
from workbench.sources.resolve import fetched, is_here


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_plain_path_and_a_file_source_name_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    assert sources.resolve("rows.csv") == sources.resolve("file:rows.csv") == tmp_path / "rows.csv"


def test_shipped_data_is_found_from_any_folder() -> None:
    assert sources.resolve("file:data/README.md").is_file()


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(RequestError, match="no such file") as caught:
        sources.resolve("row.csv")
    assert "rows.csv" in caught.value.remedy


def test_a_missing_file_names_the_key_that_asks_for_it_and_no_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine")
    with pytest.raises(RequestError, match="no such file") as caught:
        sources.resolve(str(tmp_path / "rows.csv"), key="data.train")
    assert caught.value.where == f"data.train={tmp_path / 'rows.csv'}"
    assert "mine.yaml" not in caught.value.remedy
    assert str(tmp_path) in caught.value.remedy
    with pytest.raises(RequestError) as caught:
        sources.content_digests({"teacher.prompts": "file:nowhere/prompts.jsonl"})
    assert caught.value.where.startswith("teacher.prompts=")


def test_other_bytes_than_promised_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    sources.resolve("rows.csv", sha256=file_sha256(tmp_path / "rows.csv"))
    with pytest.raises(WorkbenchError, match="promises"):
        sources.resolve("rows.csv", sha256="0" * 64)


@pytest.mark.parametrize("source", ["pypi:nopackage", "hf:noslash", "gopher:x"])
def test_a_source_that_cannot_be_read_says_how_to_write_it(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        sources.resolve(source)
    assert caught.value.remedy


def test_a_failed_fetch_leaves_nothing_behind_and_the_next_one_is_kept(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").write_text("x")
        raise WorkbenchError("cut")

    with pytest.raises(WorkbenchError):
        fetched("xx:y", fail)
    assert not is_here("xx:y")
    folder = fetched("xx:y", lambda into: (into / "whole").write_text("x") and None)
    assert is_here("xx:y")
    assert fetched("xx:y", fail) == folder


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "x.pkl", "nested/y.pt"])
def test_a_model_folder_with_code_or_pickles_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_text("x")
    with pytest.raises(RequestError, match="can carry code"):
        sources.refuse_code(tmp_path / "model")


def test_an_auto_map_anywhere_in_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {"auto_map": {"AutoModel": "x.Y"}}}')
    with pytest.raises(RequestError, match="auto_map"):
        sources.refuse_code(tmp_path)


def test_a_small_wheel_member_is_fetched_once_from_the_package_index() -> None:
    source = "pypi:six==1.16.0!six.py"
    path = sources.resolve(source, sha256="4ce39f422ee71467ccac8bed76beb05f8c321c7f0ceda9279ae2dfa3670106b3")
    before = path.stat().st_mtime_ns
    assert sources.resolve(source) == path
    assert path.stat().st_mtime_ns == before


def test_a_missing_wheel_member_names_the_nearest_one() -> None:
    with pytest.raises(RequestError, match="no member") as caught:
        sources.resolve("pypi:six==1.16.0!sic.py")
    assert "six.py" in caught.value.remedy


def a_gguf(path: Path) -> Path:
    """A file with an array of strings, a number and a tensor."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "a", "é", "日本"])
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.arange(8, dtype=np.float32).reshape(4, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_read_fast_holds_what_the_packages_own_reader_finds(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = a_gguf(tmp_path / "a.gguf")
    fast, slow = read_gguf(path), GGUFReader(path)
    assert {k: f.contents() for k, f in fast.fields.items()} == {k: f.contents() for k, f in slow.fields.items()}
    assert fast.fields["tokenizer.ggml.tokens"].contents() == ["<s>", "a", "é", "日本"]
    assert [(t.name, t.tensor_type, t.data.tolist()) for t in fast.tensors] == [
        (t.name, t.tensor_type, t.data.tolist()) for t in slow.tensors
    ]


def test_while_a_gguf_is_unpacked_its_head_is_read_once_and_the_package_is_left_as_it_was(tmp_path: Path) -> None:
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    path = str(a_gguf(tmp_path / "a.gguf"))
    with pytest.raises(ZeroDivisionError), read_once():
        assert gguf.GGUFReader(path) is gguf.GGUFReader(path)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        raise ZeroDivisionError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_what_killed_fetches_left_goes_with_the_next_fetch_of_anything_unless_one_is_still_at_work(
    tmp_path: Path,
) -> None:
    kept = fetched("xx:y", lambda into: (into / "whole").write_text("x") and None)
    place = kept.parent
    dead, living = place / ".pypi-a-1.0-0123.abcd_efg", place / ".pypi-b-2.0-4567.hijk_lmn"
    for folder in (dead, living):
        (folder / ".download-x").mkdir(parents=True)
        (folder / ".download-x" / "part.whl").write_bytes(b"x")
    with FileLock(place / "pypi-b-2.0-4567.lock"):
        fetched("xx:z", lambda into: (into / "whole").write_text("z") and None)
    assert not dead.exists()
    assert (living / ".download-x" / "part.whl").is_file()
    assert (kept / "whole").is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"a": [{"auto\\u005fmap": {"AutoModel": "x.Y"}}]}'),
        ("sub/x.json", '{"\\u0061uto_map": {"AutoConfig": "x.Y"}}'),
        ("config.json", '{"attn_implementation": "someone/kernel"}'),
        ("config.json", '{"_attn_implementation": {"text_config": "someone/kernel:flash"}}'),
        ("config.json", '{"text_config": {"experts_implementation": "someone/kernel"}}'),
        ("config.json", '{"attn\\u005fimplementation": "someone/kernel"}'),
        ("X.JSON", '{"auto_map": ["x.Y", null]}'),
        ("config.json", '{"custom_pipelines": {"x": {"impl": "x.Y"}}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": "../other/model.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": "/other/model.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": ".hidden/model.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": ".hidden.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": "a\\\\b.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": "shard.weights"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"w": 1}}'),
        ("model.safetensors.index.json", "no JSON"),
        ("adapter_config.json", '{"base_model_name_or_path": "../other"}'),
        ("MODELING.PY", ""),
        ("pytorch_model.BIN", ""),
    ],
)  # fmt: skip
def test_a_model_folder_loads_no_code_however_it_is_written_and_no_weights_from_elsewhere(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError):
        sources.model_folder(f"dir:{tmp_path}")


def test_a_sharded_model_and_words_about_code_in_a_vocabulary_are_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"attn_implementation": "sdpa", "_attn_implementation": null}')
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"")
    index = '{"weight_map": {"w": "model-00001-of-00001.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "tokenizer.json").write_text('{"vocab": {"auto_map": 7, "\\u0021": 8}}')
    assert sources.model_folder(f"dir:{tmp_path}") == tmp_path
