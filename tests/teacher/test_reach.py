"""Which key may go to which endpoint, which rows may take an open way, and what is believed to stand inside."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from echo_server import echo_server
from teacher_project import project, questions
from workbench.errors import RequestError
from workbench.recipe import Teacher
from workbench.teacher.client import key_of
from workbench.teacher.egress import proxy_for
from workbench.teacher.reach import base_url_of, refuse_outside, refuse_stray_key, require_way
from workbench.tracking.store import refuse_stray_password

ROOT = Path(__file__).parents[2]
LOOPBACK = "http://127.0.0.1:9/v1"
NOT_A_TEACHERS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "GITHUB_TOKEN", "STRIPE_API_KEY", "DATABASE_URL", "HOME",
    "MLFLOW_TRACKING_PASSWORD", "WORKBENCH_SIGNING", "SSH_AUTH_SOCK", "AZURE_CLIENT_SECRET", "MY_KEY",
)  # fmt: skip


@pytest.mark.parametrize("name", NOT_A_TEACHERS)
@pytest.mark.parametrize("base", [LOOPBACK, "https://evil.example.org/v1", "https://api.openai.com/v1"])
def test_a_variable_that_is_no_teachers_key_goes_nowhere(name: str, base: str) -> None:
    with pytest.raises(RequestError) as caught:
        refuse_stray_key(name, base)
    assert caught.value.where == "teacher.key_variable"
    assert "WORKBENCH_ALLOWED_KEYS" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("OPENAI_API_KEY", "https://evil.example.org/v1"),
        ("OPENAI_API_KEY", "https://api.openai.com.evil.example.org/v1"),
        ("OPENAI_API_KEY", "https://evilapi.openai.com/v1"),
        ("OPENAI_API_KEY", "https://api.openai.com@evil.example.org/v1"),
        ("OPENAI_API_KEY", "https://127.0.0.1.evil.example.org/v1"),
        ("OPENAI_API_KEY", "https://api.anthropic.com"),
        ("AZURE_OPENAI_API_KEY", "https://openai.azure.com.evil.example.org/openai/v1"),
        ("MISTRAL_API_KEY", "http://10.0.0.7:8000/v1"),
    ],
)
def test_a_vendors_key_goes_to_no_other_host(name: str, base: str) -> None:
    with pytest.raises(RequestError, match="would be sent to"):
        refuse_stray_key(name, base)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("OPENAI_API_KEY", "https://api.openai.com/v1"),
        ("OPENAI_API_KEY", "https://API.OpenAI.com./v1"),
        ("OPENAI_API_KEY", LOOPBACK),
        ("AZURE_OPENAI_API_KEY", "https://mine.openai.azure.com/openai/v1"),
        ("WORKBENCH_TEACHER_KEY", "https://llm.corp.example/v1"),
        ("WORKBENCH_KEY", "https://llm.corp.example/v1"),
        ("GATEWAY_API_KEY", "https://llm.corp.example/v1"),
        ("VLLM_API_KEY", "http://10.0.0.7:8000/v1"),
    ],
)
def test_a_key_goes_where_it_belongs(name: str, base: str) -> None:
    refuse_stray_key(name, base)


def test_the_users_environment_allows_a_key_for_one_host_or_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ALLOWED_KEYS", "CORP_LLM_KEY@llm.corp.example, ANY_KEY")
    refuse_stray_key("CORP_LLM_KEY", "https://llm.corp.example/v1")
    refuse_stray_key("ANY_KEY", "https://else.example/v1")
    with pytest.raises(RequestError):
        refuse_stray_key("CORP_LLM_KEY", "https://evil.example.org/v1")


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "teacher").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_teachers_key_belongs_to_its_address(config: Path) -> None:
    known = yaml.safe_load(config.read_text())
    teacher = Teacher(**{name: known.get(name) for name in ("api", "base_url", "key_variable")})
    if teacher.key_variable:
        refuse_stray_key(teacher.key_variable, base_url_of(teacher))


def test_the_door_sends_no_other_key_although_the_recipe_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI7K7MDENGbPxRfiCYEXAMPLEKEY")
    with echo_server() as server:
        made = project(tmp_path, questions(2), server.url + "/v1", key_variable="AWS_SECRET_ACCESS_KEY")
        for verb in ("label", "plan"):
            done = made.run(verb, "recipe=./mine.yaml")
            assert done.returncode == 2, verb
            assert "teacher.key_variable" in done.stderr
        assert server.calls == []


# ---- plain http


def teacher(**keys: Any) -> Teacher:
    return Teacher(**{"api": "openai", "model": "m", "base_url": "http://192.0.2.7:8000/v1", **keys})


@pytest.mark.parametrize(
    ("keys", "privacy"),
    [({}, "internal"), ({}, "restricted"), ({"key_variable": "VLLM_API_KEY"}, "public"),
     ({"base_url": "http://10.0.0.7/v1", "inside": True}, "restricted"),
     ({"base_url": "HTTP://llm.example"}, "internal"),
     ({"base_url": "http://localhost.example.org/v1"}, "internal")],
)  # fmt: skip
def test_a_key_or_rows_that_are_not_public_take_plain_http_to_no_other_machine_but_aloud(
    keys: dict[str, Any], privacy: str
) -> None:
    with pytest.raises(RequestError, match="plain http") as caught:
        require_way(teacher(**keys), privacy, look_up=False)
    assert caught.value.where == "teacher.base_url"
    (line,) = require_way(teacher(**keys, plain_http=True), privacy, look_up=False)
    assert "teacher.plain_http" in line


def test_public_rows_without_a_key_and_loopback_need_no_word() -> None:
    assert require_way(teacher(), "public") == []
    assert require_way(teacher(base_url=LOOPBACK, key_variable="VLLM_API_KEY"), "restricted") == []
    assert require_way(teacher(base_url="https://llm.example/v1", key_variable="VLLM_API_KEY"), "internal") == []


def test_a_key_is_not_even_read_for_an_open_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "some-key")
    with pytest.raises(RequestError, match="plain http"):
        key_of(teacher(key_variable="VLLM_API_KEY"))


# ---- inside


def answering(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these names looked up here: to each address in turn, to the last from then on; `a+b` are two at once."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if host not in names:
            return real(host, port, *rest, **named)
        found = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        if not found:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port or 0)) for one in found.split("+")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "172.16.0.1", "192.168.7.7", "169.254.1.1", "127.0.0.1", "localhost", "[::1]", "[fd12::1]",
     "[fe80::1]", "[::ffff:10.0.0.1]", "vllm.house"],
)  # fmt: skip
def test_private_addresses_and_names_that_have_no_other_stand_inside(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering({"vllm.house": ["10.0.0.9+192.168.1.1"]}, monkeypatch)
    refuse_outside(f"https://{host}/v1")


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "192.0.2.7", "172.32.0.1", "100.64.0.1", "0.0.0.0", "[2001:db8::1]", "[::ffff:8.8.8.8]",
     "public.example", "mixed.example", "nobody.example"],
)  # fmt: skip
def test_a_public_address_is_not_believed_to_stand_inside_without_a_word_outside_of_the_recipe(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(
        {"public.example": ["8.8.8.8"], "mixed.example": ["10.0.0.1+8.8.8.8"], "nobody.example": [""]}, monkeypatch
    )
    with pytest.raises(RequestError) as caught:
        require_way(teacher(base_url=f"https://{host}/v1", inside=True), "restricted")
    assert caught.value.where == "teacher.inside"
    monkeypatch.setenv("WORKBENCH_INSIDE_HOSTS", f"other.example {host.strip('[]')}")
    require_way(teacher(base_url=f"https://{host}/v1", inside=True), "restricted")


def test_restricted_rows_go_to_a_private_name_past_the_proxy_and_not_once_it_has_become_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.9:3128")
    with echo_server() as server:
        port = server.url.rpartition(":")[2]
        keys = {"privacy": "restricted", "inside": True, "plain_http": True, "attempts": 1}
        made = project(tmp_path, questions(2), f"http://vllm.house:{port}/v1", **keys)
        answering({"vllm.house": ["127.0.0.1"]}, monkeypatch)
        done = made.label()
        assert done.returncode == 0, done.stderr
        assert "plain http" in done.stderr
        assert {headers["host"] for _, _, headers in server.calls} == {f"vllm.house:{port}"}
        # Checked by the stage, then changed: nothing more is sent.
        reached = len(server.calls)
        answering({"vllm.house": ["127.0.0.1", "203.0.113.5"]}, monkeypatch)
        with (tmp_path / "prompts.jsonl").open("a") as stream:
            stream.write('{"id": "new", "text": "Is this one new?"}\n')
        done = made.label()
        assert done.returncode == 2, [p.read_text() for p in tmp_path.rglob("rejected.jsonl")]
        assert "203.0.113.5" in done.stderr
        assert len(server.calls) == reached


def test_a_proxy_is_passed_by_for_loopback_and_what_no_proxy_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "llm.example")
    assert proxy_for("https://llm.example/v1") is None
    assert proxy_for("https://127.0.0.5/v1") is None
    assert proxy_for("https://other.example/v1") == "http://proxy.example:3128"


# ---- the tracking server's password is a key too


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_the_tracking_password_goes_to_no_server_that_only_a_recipe_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    refuse_stray_password("https://evil.example.org")
    monkeypatch.setenv(name, "some-password-1")
    for uri in ("https://evil.example.org", "http://evil.example.org:5000"):
        with pytest.raises(RequestError, match=name):
            refuse_stray_password(uri)
    for uri in ("http://127.0.0.1:5000", "sqlite:////tmp/mlflow.db"):
        refuse_stray_password(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.corp.example/")
    refuse_stray_password("https://mlflow.corp.example")
    with pytest.raises(RequestError):
        refuse_stray_password("http://mlflow.corp.example")
    monkeypatch.setenv("WORKBENCH_ALLOWED_KEYS", f"{name}@evil.example.org")
    refuse_stray_password("https://evil.example.org")
