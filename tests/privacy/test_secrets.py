"""Secrets stay where they belong: no way in leads to a file, a store, the screen or the wire; no key to a stranger."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import os
import stat
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echo_server import echo_server
from teacher_project import KEY, Done, project, questions
from workbench.__main__ import main
from workbench.compose import composed
from workbench.errors import RequestError
from workbench.privacy.secrets import credential_in, masked, shows_key
from workbench.recipe import known_keys, read
from workbench.runs import open_run

ROOT = Path(__file__).parents[2]
# Each form a secret may have, with what must never be seen of it.
CANARIES = {
    "sk-proj-Cn4ryZx81kkQw9PLm2vTt7Yb4Ra6S": "Cn4ryZx81",
    "hf_Cn4ryQqWwEeRrTtYyUuIiOoPpAaSsDdFf1": "Cn4ryQqWw",
    "ghp_Cn4ryA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5": "Cn4ryA1b2",
    "AKIA2CANARYQ7EXAMPL3": "2CANARYQ7",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjbjRyeSJ9.Cn4rySignature99": "Cn4rySign",
    "the password is Cn4ry!Horse77": "Cn4ry!Horse77",
    "api_key = Cn4ryPlain0123456789": "Cn4ryPlain",
    "Authorization: Bearer Cn4ry0123456789abcdef": "Cn4ry01234",
    "https://anna:Cn4ryPw1x@db.example.org/rows": "Cn4ryPw1x",
    "s3://AKIAX:Cn4rySecret/x@bucket/rows.jsonl": "Cn4rySecret",
    "https://b.s3.amazonaws.com/r.csv?X-Amz-Signature=Cn4ry55aa66bb77": "Cn4ry55aa",
    "https://acc.blob.core.windows.net/c/r.csv?sv=2024&sig=Cn4ryB64%3D": "Cn4ryB64",
    "-----BEGIN PRIVATE KEY-----\nCn4ryMIIEvQ\n-----END PRIVATE KEY-----": "Cn4ryMIIE",
    "see Cn4ry.held.By-The-Environment here": "Cn4ry.held",
}
HELD = "Cn4ry.held.By-The-Environment"


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", HELD)


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    """A whole recipe that is let in."""
    cfg = composed(ROOT / "recipes" / "legal_lora.yaml", [])
    assert read(cfg, "plain").name == "plain"
    return cfg


def text_keys() -> list[str]:
    """Every key of a recipe that takes text, lists and nested ones too."""
    cfg = composed(ROOT / "recipes" / "legal_lora.yaml", [])
    numbers = (bool, int, float)
    keys = [name for name in known_keys() if "<name>" not in name]
    return [name for name in keys if not isinstance(OmegaConf.select(cfg, name), (*numbers, DictConfig))]


TEXT_KEYS = text_keys()


def test_there_are_more_than_sixty_ways_in() -> None:
    assert len(TEXT_KEYS) >= 60


@pytest.mark.parametrize("name", TEXT_KEYS)
def test_no_text_of_a_recipe_may_hold_a_secret_and_it_is_not_repeated(name: str, plain: DictConfig) -> None:
    cfg = plain.copy()
    old = OmegaConf.select(cfg, name)
    for text, trace in CANARIES.items():
        try:
            OmegaConf.update(cfg, name, [text] if OmegaConf.is_list(old) else text)
        except OmegaConfBaseException:  # a key that takes no text refuses it itself
            assert OmegaConf.select(cfg, name) == old
            continue
        with pytest.raises(RequestError) as caught:
            read(cfg, "mine")
        assert trace not in str(caught.value), text
        assert caught.value.where.removesuffix(".0") == name
        assert "environment variable" in str(caught.value)


@pytest.mark.parametrize("text", CANARIES)
def test_a_secret_as_the_name_of_a_key_is_refused_too(text: str, plain: DictConfig) -> None:
    cfg = plain.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.teacher.fields = {text.replace(".", "_"): []} if HELD not in text else {HELD: []}
    if credential_in(text.replace(".", "_")) or HELD in text:
        with pytest.raises(RequestError) as caught:
            read(cfg, "mine")
        assert CANARIES[text] not in str(caught.value)


@pytest.mark.parametrize("value", ["Cn4ry0123456789abcdef01234567", "cn4ry", "CN4RY0123456789ABCDEF01234567", "a b"])
def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated(value: str, plain: DictConfig) -> None:
    cfg = plain.copy()
    cfg.teacher.key_variable = value
    with pytest.raises(RequestError) as caught:
        read(cfg, "mine")
    assert caught.value.where == "teacher.key_variable"
    assert value not in str(caught.value)


def run_here(*words: str) -> Done:
    shown, told = io.StringIO(), io.StringIO()
    with redirect_stdout(shown), redirect_stderr(told):
        code = main(list(words))
    return Done(code, shown.getvalue(), told.getvalue())


WORDS = [
    ["doctor", "uri=postgresql://anna:{}@db.example.org/mlflow"],
    ["doctor", "uri=https://host/?token={}"],
    ["ui", "uri=https://anna:{}@mlflow.example.org"],
    ["export", "from=models:/m@champion", "to=s3://key:{}@bucket/path"],
    ["export", "from=models:/m@champion", "to=https://x.blob.core.windows.net/c?sig={}"],
    ["export", "password={}", "to=out"],
    ["verify", "bundle=https://anna:{}@host/bundle"],
    ["serve", "sk-{}0123456789"],
    ["compare", "runs=sk-{}0123456789"],
    ["evaluate", "model=models:/m@champion", "data=https://anna:{}@host/rows.csv"],
    ["train", "recipe=./sk-{}0123456789.yaml"],
    ["train", "recipe=legal_lora", "data.train=s3://key:{}@bucket/rows.jsonl"],
    ["train", "recipe=legal_lora", "+sk-{}0123456789=1"],
    ["train", "recipe=legal_lora", "data.instruction='the password is {}'"],
    ["train", "recipe=legal_lora", "tracking.uri=https://anna:{}@mlflow.example.org", "-m"],
    ["train", "recipe=legal_lora", "method.learning_rate=1e-4,2e-4", "hydra.job.name=sk-{}0123456789", "-m"],
    ["train", "recipe=legal_lora", "--config-dir=https://anna:{}@host/configs"],
    ["train", "recipe=legal_lora", "teacher.base_url=https://anna:{}@api.example.org/v1", "debug=true"],
    ["sk-{}0123456789"],
    ["plan", "recipe=legal_lora", "evaluate.judge.base_url=https://api.example.org/v1?key={}"],
]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: " ".join(words)[:60])
def test_a_secret_on_the_command_line_is_refused_before_anything_is_written_or_shown(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "Cn4ry77Horse"
    done = run_here(*(word.format(secret) for word in words))
    assert done.returncode == 2, done.stderr
    assert secret not in done.stdout + done.stderr
    assert "environment variable" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--cfg=job"], ["method.learning_rate=1e-4,2e-4", "-m"], []], ids=str)
def test_a_secret_inside_the_recipes_file_is_neither_shown_nor_swept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"defaults": ["workbench", {"model": "smollm2_135m"}, "_self_"], "data": {"train": "x.csv"}}
    recipe["data"]["instruction"] = "Use sk-proj-Cn4ryZx81kkQw9PLm2vTt7Yb4Ra6S"  # type: ignore[index]
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    done = run_here("train", "recipe=./mine.yaml", *words)
    assert done.returncode == 2
    assert "data.instruction" in done.stderr
    assert "Cn4ryZx81" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("config", [p for f in ("configs", "recipes") for p in (ROOT / f).rglob("*.yaml")], ids=str)
def test_what_is_shipped_holds_nothing_that_is_taken_for_a_secret(config: Path) -> None:
    assert credential_in(config.read_text()) == ""


@pytest.mark.parametrize(
    "text",
    ["Reply with the licence key: mit or apache-2.0.", "Find the password in this text.", "https://example.org/a?page=2",
     "ssh://git@host/repo", "hf:org/name@0123456789abcdef0123456789abcdef01234567", "token", "models:/name@champion"],
)  # fmt: skip
def test_words_about_secrets_are_none(text: str) -> None:
    assert credential_in(text) == ""
    assert masked(text) == text


# ---- a server that says again what it was sent


def forms(secret: str) -> list[bytes]:
    """A secret as it may be found: plain, part of it, URL-encoded, in hexadecimal digits, in base64 at each place."""
    found = [secret, secret[:10], quote(secret, safe=""), secret.encode().hex()]
    for n in range(3):
        found.append(base64.b64encode(b"x" * n + secret.encode()).decode()[4:-4])
    return [form.encode() for form in found]


ECHOED = "tk/Cn4ry+Zx81kkQw9=PLm2v"


@pytest.mark.parametrize("status", [200, 400, 401, 402, 404, 429, 500])
@pytest.mark.parametrize("debug", ["debug=true", "debug=false"])
def test_a_key_that_the_server_repeats_is_found_nowhere_that_is_written_or_shown(
    status: int, debug: str, tmp_path: Path
) -> None:
    rows = ["My key is sk-proj-Cn4ryRow81kkQw9PLm2vTt7Yb4Ra6S, why?", "The password is Cn4ry!Row77.",
            "Read https://anna:Cn4ryRowPw1x@db.example.org/rows today.", *questions(3)]  # fmt: skip
    with echo_server(status) as server:
        made = project(tmp_path, rows, server.url + "/v1", privacy="internal", attempts=1, max_new_tokens=400)
        with (tmp_path / "prompts.jsonl").open("a") as stream:
            stream.write(json.dumps({"id": "sk-proj-Cn4ryId81kkQw9PLm2vTt7Yb4Ra6S", "text": "Is it?"}) + "\n")
        done = made.label(debug, key=ECHOED)
        assert server.calls, done.stderr
    assert (done.returncode == 0) == (status == 200), done.stderr
    written = made.everything() + (done.stdout + done.stderr).encode()
    assert (b"yes" in written) == (status == 200)
    for form in [*forms(ECHOED), b"Cn4ryRow", b"Cn4ry!Row", b"Cn4ryId"]:
        assert form not in written, form
    bodies = b"".join(body for _, body, _ in server.calls)
    for form in [*forms(ECHOED), b"Cn4ryRow", b"Cn4ry!Row"]:
        assert form not in bodies, form
    assert all(headers["authorization"] == f"Bearer {ECHOED}" for _, _, headers in server.calls)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_carries_neither_key_nor_row_to_another_place(status: int, tmp_path: Path) -> None:
    with echo_server() as elsewhere, echo_server(status, elsewhere.url) as server:
        made = project(tmp_path, questions(3), server.url + "/v1", attempts=1)
        done = made.label()
        assert done.returncode != 0
        assert server.calls
        assert elsewhere.calls == []


def test_errors_and_tracebacks_show_no_key_that_this_process_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:Cn4ryProxy1@proxy.example.org:8080")

    def broken(_: Any) -> int:
        raise ValueError(f"refused {HELD}, {quote(HELD)} and {os.environ['HTTPS_PROXY']}")

    monkeypatch.setattr("workbench.__main__.run_verb", broken)
    done = run_here("train", "debug=true")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "refused" in done.stderr
    assert "Cn4ry" not in done.stderr


def test_doctor_names_the_proxies_without_their_passwords(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from workbench.views import doctor

    monkeypatch.setenv("HTTPS_PROXY", "http://anna:Cn4ryProxy1@proxy.example.org:8080")
    assert doctor.proxies()["https"] == "http://proxy.example.org:8080"


def test_events_and_the_copy_of_the_recipe_hold_no_key_that_this_process_holds(tmp_path: Path) -> None:
    recipe = {"data": {"notes": f"see {HELD}"}, "path": "x"}
    with open_run(tmp_path, "mine", "12345678", recipe, fresh=False) as run:
        run.event("said", text=f"{HELD} and https://anna:Cn4ryPw1x@host/x", where=Path(HELD))
        written = b"".join(p.read_bytes() for p in run.folder.iterdir())
    assert b"Cn4ry" not in written
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["path"] == "x"


def test_an_id_that_is_a_key_becomes_a_digest_and_other_ids_stay() -> None:
    from workbench.data.row_making import Ids

    ids = Ids()
    assert "Cn4ry" not in ids.take("sk-proj-Cn4ryZx81kkQw9PLm2vTt7Yb4Ra6S", [])
    assert ids.take("0b8e3c1e-6a4d-4d0e-9d57-0f6a2f5b1c11", []) == "0b8e3c1e-6a4d-4d0e-9d57-0f6a2f5b1c11"
    assert ids.secret == 1
    assert not shows_key("row-17")


# ---- who may read it


def modes_of(folder: Path) -> dict[str, int]:
    """What group and others may do with each file and folder below."""
    return {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) & 0o077 for p in folder.rglob("*")}


@pytest.mark.usefixtures("new_store")
def test_runs_ledger_and_logs_are_for_the_user_alone_and_what_was_open_is_closed(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with echo_server() as server:
            made = project(tmp_path, questions(3), server.url + "/v1", attempts=1)
            assert made.label().returncode == 0
            kept = tmp_path / "experiments"
            assert {name for name, mode in modes_of(kept).items() if mode} == set()
            assert stat.S_IMODE(kept.stat().st_mode) == 0o700
            (run,) = (p.parent for p in kept.glob("mine/*/run.json"))
            for path in (run, kept / "ledger.db", kept / "egress.jsonl"):
                path.chmod(path.stat().st_mode | 0o055)
            assert made.label("fresh=true").returncode == 0
            assert {name for name, mode in modes_of(kept).items() if mode} == set()
        assert os.umask(0o022) == 0o022, "the caller's own umask is put back"
    finally:
        os.umask(before)


def test_what_is_exported_has_the_rights_that_the_users_umask_gives(tmp_path: Path) -> None:
    from workbench.files import hand_out, keep_private

    before = os.umask(0o027)
    try:
        with keep_private():
            bundle = tmp_path / "bundle"
            (bundle / "inner").mkdir(parents=True)
            (bundle / "inner" / "weights").touch()
            (bundle / "run.sh").touch()
            (bundle / "run.sh").chmod(0o700)
            assert set(modes_of(tmp_path).values()) == {0}
            hand_out(bundle)
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [bundle, *bundle.rglob("*")]}
        assert modes == {"bundle": 0o750, "inner": 0o750, "weights": 0o640, "run.sh": 0o750}
    finally:
        os.umask(before)


def test_asking_for_secrets_costs_the_door_next_to_nothing() -> None:
    import subprocess
    import sys

    heavy = "[name for name in ('phonenumbers', 'stdnum', 'torch') if name in sys.modules]"
    code = f"import sys, workbench.privacy.secrets; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_servers_key_is_not_in_the_log_of_a_library(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with echo_server() as server, caplog.at_level(logging.DEBUG):
        project(tmp_path, questions(2), server.url + "/v1", attempts=1).label(key=ECHOED)
    assert server.calls
    assert not [form for form in forms(ECHOED) if form in caplog.text.encode()]
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "MYSQL_PWD", "SSHPASS", "REDISCLI_AUTH", "NPM_CONFIG__AUTH", "DBPASSWORD", "SMTPPASSWORD",
     "GHTOKEN", "STRIPE_APIKEY", "AWSSECRETKEY", "GOOGLE_CREDENTIALS", "DB_CREDENTIAL", "GITHUB_PAT",
     "KEYSTORE_PASS", "db_token"],
)  # fmt: skip
@pytest.mark.parametrize(
    "value",
    ["Cn4ry/plain+Value", "/Cn4ryBase64/that+begins/like-a-path", "Cn4ry with blanks", 'Cn4ry"quo\\ted', "Cn4ry<&>'x",
     "Cn4ryÜml\u00e4ut", "918273645546372", "Cn4ryLineOfManyCharacters\nCn4rySecondLineOfMany"],
)  # fmt: skip
def test_what_a_variable_named_after_a_secret_holds_is_masked_in_every_form(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    written = [value, json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value), html.escape(value),
               quote(value), quote(value, safe=""), value.encode().hex().upper(), *value.split("\n")]  # fmt: skip
    for text in written:
        assert "Cn4ry" not in masked(f"before {text} after")
        assert value[:9] not in masked(f"before {text} after")
        assert value.encode().hex().upper() not in masked(text)


@pytest.mark.parametrize(
    "value",
    ["/etc/ssl/private/key.pem", "~/.ssh/id_ed25519", "./secrets/key", "../key.pem", "true", "disabled", "128000",
     "127.0.0.1:8080"],
)  # fmt: skip
def test_a_path_a_number_or_a_word_in_such_a_variable_spoils_no_sentence(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_AUTH", value)
    assert masked(f"it is {value} now") == f"it is {value} now"
