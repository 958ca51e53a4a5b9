"""Images in a bucket, over HTTP: what belongs to the prefix, names that lead out of it, and what S3 refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from components.data.config import EncodeConfig, source_digest
from components.errors import UserError
from components.store.objects import ObjectRef, ObjectStore, fetch_prefix, list_prefix, s3_client


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    client = s3_client()
    client.create_bucket(Bucket="images")
    yield lambda **keys: [client.put_object(Bucket="images", Key=key, Body=body) for key, body in keys.items()]
    for item in client.list_objects_v2(Bucket="images").get("Contents", []):
        client.delete_object(Bucket="images", Key=item["Key"])


def fetched(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_prefix_is_a_folder(bucket: Any, tmp_path: Path) -> None:
    bucket(**{"pets/train/a/1.png": b"1", "pets/": b"", "pets/train/": b"", "pets-old/train/a/1.png": b"old"})
    for address in ("s3://images/pets", "s3://images/pets/"):
        assert [name for name, _, _ in list_prefix(address)] == ["train/a/1.png"]
    assert fetched(fetch_prefix("s3://images/pets", tmp_path / "to")) == {"train/a/1.png": b"1"}


def test_a_moved_prefix_has_the_same_digest_and_the_neighbours_do_not_count(bucket: Any) -> None:
    bucket(**{"pets/train/a/1.png": b"1", "copy/train/a/1.png": b"1", "other/train/a/1.png": b"2"})

    def digest(name: str) -> str:
        return source_digest(EncodeConfig(source=f"s3://images/{name}"), list_prefix=list_prefix)

    before = digest("pets")
    assert digest("copy") == before != digest("other")
    bucket(**{"pets-old/train/a/1.png": b"old"})
    assert digest("pets") == before


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_without_a_scheme_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "localhost:9000")
    with pytest.raises(UserError) as caught:
        list(list_prefix("s3://images/pets"))
    assert str(caught.value) == (
        f"{variable}: this address has no scheme (got 'localhost:9000'). "
        "write http://localhost:9000 or https://localhost:9000."
    )


def test_a_whole_bucket_can_be_read(bucket: Any, tmp_path: Path) -> None:
    bucket(**{"train/a/1#?.png": b"1"})
    assert fetched(fetch_prefix("s3://images", tmp_path / "to")) == {"train/a/1#?.png": b"1"}


@pytest.mark.parametrize("name", ["../escaped.png", "train/../../escaped.png", "/escaped.png"])
def test_no_object_is_written_outside_the_folder(bucket: Any, tmp_path: Path, name: str) -> None:
    bucket(**{f"pets/{name}": b"x"})
    with pytest.raises(UserError, match="leads out of the prefix"):
        fetch_prefix("s3://images/pets", tmp_path / "deep" / "to")
    assert fetched(tmp_path) == {}


def test_a_name_of_an_object_and_a_folder_is_refused(bucket: Any, tmp_path: Path) -> None:
    bucket(**{"pets/train": b"x", "pets/train/a.png": b"x"})
    with pytest.raises(UserError, match="this name is both an object and a folder"):
        fetch_prefix("s3://images/pets", tmp_path / "to")


@pytest.mark.parametrize("keys", [{}, {"pets/": b""}, {"pets-old/a.png": b"x"}], ids=["nothing", "marker", "neighbour"])
def test_an_empty_prefix_is_refused(bucket: Any, tmp_path: Path, keys: dict[str, bytes]) -> None:
    bucket(**keys)
    for read in (lambda uri: list(list_prefix(uri)), lambda uri: fetch_prefix(uri, tmp_path / "to")):
        with pytest.raises(UserError, match=r"s3://images/pets: there are no objects below"):
            read("s3://images/pets")


def test_an_unknown_bucket_is_said(bucket: Any, tmp_path: Path) -> None:
    for read in (lambda uri: list(list_prefix(uri)), lambda uri: fetch_prefix(uri, tmp_path / "to")):
        with pytest.raises(UserError, match=r"s3://nothing-here/x: S3 cannot be used.*NoSuchBucket.*AWS_ENDPOINT_URL"):
            read("s3://nothing-here/x")


def test_an_object_that_goes_away_while_it_is_fetched_is_said(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket(**{"pets/train/a/1.png": b"1"})
    monkeypatch.setattr("components.store.objects.list_prefix", lambda uri: [("train/a/2.png", 1, "x")])
    with pytest.raises(UserError, match=r"s3://images/pets: S3 cannot be used for this.*404"):
        fetch_prefix("s3://images/pets", tmp_path / "to")


def test_missing_credentials_are_said(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the credentials that it found first
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = ObjectStore("s3://images/objects", tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"abc")
    reading = [
        lambda: list(list_prefix("s3://images/pets")),
        lambda: store.put(tmp_path / "file", "a"),
        lambda: store.holds(ObjectRef("s3://images/objects/a", 3, "0" * 64)),
    ]
    for read in reading:
        with pytest.raises(UserError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
            read()


def test_an_object_is_stored_verified_and_missed(bucket: Any, tmp_path: Path) -> None:
    store = ObjectStore("s3://images/objects", tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"abc")
    ref = store.put(tmp_path / "file", "a")
    assert store.holds(ref, deep=True)
    assert store.get(ref).read_bytes() == b"abc"
    bucket(**{"objects/b": b"abd"})
    other = ObjectRef("s3://images/objects/b", 3, "0" * 64)
    with pytest.raises(UserError, match="another sha256"):
        store.get(other)
    (tmp_path / "file").write_bytes(b"abd")
    store.put(tmp_path / "file", "a")
    assert store.holds(ref)
    assert not store.holds(ref, deep=True)
    gone = ObjectRef("s3://images/objects/c", 3, "1" * 64)
    assert not store.holds(gone)
    with pytest.raises(UserError, match=r"objects/c: is missing"):
        store.get(gone)
