"""Sixty ways in for a secret, and everything that a tiny life writes, shows or sends searched for each of them.

The rows of a class that may leave only redacted are the training data and stay in the run: of them only what leaves is
searched. Everything else that is secret is found nowhere.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest

from bundle_project import RECIPE, only_run
from workbench.__main__ import main

# Variables that hold something which opens something, whatever they are for.
VARIABLES = (
    "TEACHER_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "GITHUB_TOKEN", "PGPASSWORD", "SSHPASS", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DB_PASSWORD",
    "SERVICE_CREDENTIALS", "PRIVATE_KEY", "SLACK_TOKEN", "AZURE_STORAGE_KEY", "GOOGLE_API_KEY", "NPM_TOKEN",
    "CI_JOB_TOKEN", "VAULT_TOKEN", "SIGNING_SECRET", "SMTP_PASS", "SOME_PAT", "REDIS_URL",
)  # fmt: skip
# Keys of a recipe that take text: a secret there is refused, and not repeated.
TEXT_KEYS = (
    "data.instruction", "data.name", "data.licence", "data.columns.group", "teacher.model", "teacher.family",
    "evaluate.judge.criteria", "tracking.experiment", "tracking.registered_model", "model.licence",
)  # fmt: skip
WORDS = (
    "tracking.uri=https://anna:{}@mlflow.example.org", "data.train=s3://key:{}@bucket/rows.jsonl",
    "data.test=https://host/rows.csv?sig={}", "teacher.base_url=https://anna:{}@api.example.org/v1",
    "data.instruction='the password is {}'", "model.source=https://anna:{}@host/model", "+sk-{}0123456789=1",
    "launch.experiments=https://anna:{}@host/x", "method.optimizer=sk-{}0123456789", "--config-dir=https://a:{}@host/c",
)  # fmt: skip
ROWS = (
    "My key is sk-proj-{}abcdefghij0123 and it fails.", "The password is {}!", "pw = {}", "pw: {}", "api_key: {}",
    "Authorization: Bearer {}", "postgres://app:{}@db.example.com/prod", "export DB_PASS='{}'", "token={}",
    "login: bob pass: {}", "AWS_SECRET_ACCESS_KEY={}", "secret: \"{}\"", "user/pw: bob / {}", "ghp_{}A1b2C3d4E5f6G7h8",
    "mysql -u root -p{} db", "{{\"password\": \"{}\"}}",
)  # fmt: skip


def canary(way: str, number: int) -> str:
    """A secret of its own for each way in, of letters and digits as keys have them."""
    return f"Cn4ry{way}{number:02}Zx81kkQw9PLm2vT"


def forms(secret: str) -> Iterator[bytes]:
    """A secret plain, in base64 at each of its three places, URL-encoded, in hexadecimal digits."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield secret.encode().hex().encode()
    for before in range(3):
        yield base64.b64encode(b"x" * before + secret.encode())[4:-4]


def carried(secret: str, number: int) -> str:
    """A secret as a server may repeat it, in another form each time."""
    return [secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode(), secret.encode().hex()][
        number % 4
    ]


@pytest.fixture
def echoing() -> Iterator[tuple[str, list[bytes], list[str]]]:
    """(address, what arrived: path, headers but the key's, body; what the server repeats in its answers)."""
    seen: list[bytes] = []
    repeats: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            others = "\n".join(f"{k}: {v}" for k, v in self.headers.items() if k.lower() != "authorization")
            seen.append(f"{self.path}\n{others}\n".encode() + body)
            echo = carried(repeats[len(seen) % len(repeats)], len(seen)) if repeats else ""
            asked = "Reply with the word" in body.decode()
            message = {"role": "assistant", "content": "ok" if asked else f"red {echo}"}
            reply = {"id": "c", "object": "chat.completion", "created": 1, "model": f"m {echo}",
                     "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                     "usage": {"prompt_tokens": 20, "completion_tokens": 5}}  # fmt: skip
            raw = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen, repeats
    server.shutdown()
    server.server_close()


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_of_sixty_secrets_none_is_in_a_file_a_store_a_screen_or_on_the_wire_after_a_life(
    tiny_model: Path,
    tmp_path: Path,
    echoing: tuple[str, list[bytes], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, seen, repeats = echoing
    held = {name: canary("Env", n) for n, name in enumerate(VARIABLES)}
    for name, secret in held.items():
        monkeypatch.setenv(name, f"redis://app:{secret}@cache.example.org/0" if name == "REDIS_URL" else secret)
    repeats += held.values()
    words = [canary("Word", n) for n in range(len(WORDS))]
    keys = [canary("Text", n) for n in range(len(TEXT_KEYS))]
    rows = [canary("Row", n) for n in range(len(ROWS))]
    assert len(held) + len(words) + len(keys) + len(rows) >= 60

    monkeypatch.chdir(tmp_path)
    questions = [f"Which colour has item {n}x{n * 7 % 31}?" for n in range(40)]
    questions += [f"{text.format(secret)} Item {n}?" for n, (text, secret) in enumerate(zip(ROWS, rows, strict=True))]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    gold = "".join(json.dumps({"question": f"Gold {n}x{n * 3 % 17}?", "answer": "red"}) + "\n" for n in range(12))
    (tmp_path / "gold.jsonl").write_text(gold)
    teacher = (
        f'teacher: {{api: openai, model: gpt-test, key_variable: TEACHER_KEY, base_url: "{url}", route: mistral_api, '
        "family: mistral, price: {input_mtok: 1.0, output_mtok: 4.0}, budget_usd: 1.0, max_new_tokens: 64, "
        "concurrency: 2}\n"
    )
    recipe = RECIPE.format(model=tiny_model, privacy="internal", more=teacher)
    recipe = recipe.replace("file:mine.csv", "file:prompts.jsonl\n  test: file:gold.jsonl\n  validation_share: 0.1")
    (tmp_path / "mine.yaml").write_text(recipe)

    # What is refused is repeated nowhere; then the life, with every variable set and repeated by the server.
    for word, secret in zip(WORDS, words, strict=True):
        assert main(["plan", "recipe=./mine.yaml", word.format(secret)]) == 2, word
    for key, secret in zip(TEXT_KEYS, keys, strict=True):
        section, _, name = key.partition(".")
        value: object = f"sk-proj-{secret}abcdefghij0123"
        for part in reversed(name.split(".")):
            value = {part: value}
        (tmp_path / "theirs.yaml").write_text(recipe + "".join(f"\n{section}: {json.dumps(value)}\n"))
        assert main(["plan", "recipe=./theirs.yaml"]) == 2, key
        (tmp_path / "theirs.yaml").unlink()
    code = main(["train", "recipe=./mine.yaml", "debug=true"])
    shown = "".join(capfd.readouterr())
    assert code == 0, shown
    for command in (["plan"], ["preview"], ["evaluate"]):
        main([command[0], "recipe=./mine.yaml"])
    main(["doctor"])
    shown += "".join(capfd.readouterr())
    assert (only_run(tmp_path) / "bundle" / "student" / "MANIFEST.json").is_file()
    assert len(seen) > 40

    theirs = [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in ("prompts.jsonl", "mine.yaml")]
    written = {str(p.relative_to(tmp_path)): p.read_bytes() for p in theirs}
    written["the screen"] = shown.encode()
    sent = b"\n".join(seen)
    leaks = [f"{name}: {where}" for name, secret in [*held.items(), *zip(WORDS, words), *zip(TEXT_KEYS, keys)]
             for form in forms(secret) for where, content in written.items() if form in content]  # fmt: skip
    leaks += [f"{name}: the wire" for name, secret in [*held.items(), *zip(ROWS, rows)]
              for form in forms(secret) if form in sent]  # fmt: skip
    assert leaks == []
    assert os.environ["TEACHER_KEY"] == held["TEACHER_KEY"]
