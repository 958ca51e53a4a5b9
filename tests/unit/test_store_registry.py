"""The registry: "there is none" is an answer, and a server that fails gives none."""

import pytest
from mlflow.exceptions import MlflowException, RestException

from components.store.registry import CHAMPION, Registry


@pytest.fixture
def registry(storage):
    return Registry(storage)


def test_a_model_or_alias_that_is_absent_is_none(registry):
    assert registry.champion("nothing") is None
    registry._client.create_registered_model("known")
    assert registry.champion("known") is None


@pytest.mark.parametrize(
    "error",
    [
        RestException({"error_code": "INTERNAL_ERROR", "message": "database is away"}),
        RestException({"error_code": "PERMISSION_DENIED", "message": "no"}),
        MlflowException("API request failed with exception: connection refused"),
        MlflowException("Invalid alias name: ' x'", error_code=1000),
    ],
)
def test_a_server_that_fails_is_not_taken_for_no_champion(registry, monkeypatch, error):
    def fails(name, alias):
        raise error

    monkeypatch.setattr(registry._client, "get_model_version_by_alias", fails)
    with pytest.raises(MlflowException):
        registry.champion("known")
    monkeypatch.setattr(registry._client, "get_registered_model", lambda name: fails(name, ""))
    with pytest.raises(MlflowException):
        registry._create_model("known")


def test_a_server_says_absent_by_the_same_code_and_words(registry, monkeypatch):
    """Over HTTP the client raises `RestException` with the store's message."""
    registry._client.create_registered_model("known")
    for name in ("nothing", "known"):
        with pytest.raises(MlflowException) as caught:
            registry._client.get_model_version_by_alias(name, CHAMPION)
        sent = RestException({"error_code": caught.value.error_code, "message": str(caught.value)})

        def answers(*_, sent=sent):
            raise sent

        with monkeypatch.context() as patched:
            patched.setattr(registry._client, "get_model_version_by_alias", answers)
            assert registry.get(name, CHAMPION) is None
