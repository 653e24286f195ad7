"""A secret inside a URL is found, refused and masked; an address without one is left as it is."""

from __future__ import annotations

import pytest

from workbench.errors import RequestError
from workbench.urls import is_loopback, refuse_credentials, split_credentials, without_passwords

SECRET = "hunter2canary"
WITH_SECRET = {
    f"http://ann:{SECRET}@host:5000": "http://host:5000",
    f"HTTPS://ann:{SECRET}@host/path?x=1": "HTTPS://host/path?x=1",
    f"http://{SECRET}@host": "http://host",
    f"git+https://{SECRET}@host/x.git": "git+https://host/x.git",
    f"http://:{SECRET}@host": "http://host",
    f"http://ann:{SECRET}/with?odd#signs@host:5000/x": "http://host:5000/x",
    f"http://ann:a@{SECRET}@host": "http://host",
    f"postgresql+psycopg://ann:{SECRET}@db:5432/mlflow": "postgresql+psycopg://db:5432/mlflow",
    f"mysql://db/x?user=ann&password={SECRET}": "mysql://db/x?user=ann",
    f"https://host/v1?key={SECRET}&v=2#top": "https://host/v1?v=2#top",
    f"https://store/x?sv=1&sig={SECRET}": "https://store/x?sv=1",
    f"https://store/x?X-Amz-Signature={SECRET}": "https://store/x",
    f"https://store/x?AWSAccessKeyId=a&Access_Token={SECRET}": "https://store/x?AWSAccessKeyId=a",
    f"mssql+pyodbc://?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}": "mssql+pyodbc://",
    f"s3://{SECRET}:{SECRET}@bucket/x": "s3://bucket/x",
    f"http://ann:{SECRET}@[::1]:5000/x": "http://[::1]:5000/x",
}
WITHOUT = [
    "http://host:5000", "http://[::1]:5000/a@b", "https://host/user@name", "mlflow:models:/x@champion",
    "abfs://container@account.dfs.core.windows.net/x", "ssh://git@host/x", "sqlite:////tmp/a@b.db", "dir:a:b@c",
    "https://host/x?max_tokens=5&page_token=", "pypi:pkg==1!2", "", "file:///a:b/c@d", "postgresql://ann@db/x",
]  # fmt: skip


@pytest.mark.parametrize(("url", "clean"), WITH_SECRET.items())
def test_a_secret_in_a_url_is_found_and_taken_out(url: str, clean: str) -> None:
    assert split_credentials(url) == (clean, True)
    assert SECRET not in without_passwords(f"cannot reach '{url}': refused")
    with pytest.raises(RequestError) as refusal:
        refuse_credentials(url, "tracking.uri", "set it in the environment")
    assert SECRET not in str(refusal.value)
    assert "tracking.uri" in str(refusal.value)


@pytest.mark.parametrize("url", WITHOUT)
def test_a_url_without_a_secret_is_left_as_it_is(url: str) -> None:
    assert split_credentials(url) == (url, False)
    assert without_passwords(f"see {url} for more") == f"see {url} for more"
    refuse_credentials(url, "tracking.uri", "")


def test_every_url_of_a_text_is_masked() -> None:
    text = f"http://a:{SECRET}@one, then (https://two?token={SECRET}) and http://three"
    assert without_passwords(text) == "http://one, then (https://two and http://three"


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://LOCALHOST.", "http://x.localhost/", "http://127.9.0.1", "http://[::1]:5",
            "http://[::ffff:127.0.0.1]", "http://ann:pw@127.0.0.1:5000"],
)  # fmt: skip
def test_loopback_is_this_machine(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "http://localhost.example.com", "http://127.0.0.1.nip.io", "http://0.0.0.0", "http://",
            "http://mylocalhost", "http://[bad", "databricks", "http://127.0.0.1@example.com", "http://localhost@evil"],
)  # fmt: skip
def test_any_other_address_is_another_machine(url: str) -> None:
    assert not is_loopback(url)
