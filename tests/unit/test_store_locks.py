"""Claims: held by a living process, seen by others, and one line where the lock's file cannot be made."""

import pytest

from components.errors import UserError
from components.store.locks import file_lock, is_held


def test_a_claim_is_seen_while_it_is_held_and_not_after(tmp_path):
    path = tmp_path / "locks" / "a.lock"
    with file_lock(path):
        assert is_held(path)
    assert not is_held(path)
    with file_lock(path, wait=False):
        assert is_held(path)


def test_a_lock_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "home").write_text("no folder")
    with (
        pytest.raises(UserError, match=r"home/locks/a\.lock: this lock file cannot be created.*ROBUSTRAIN_HOME"),
        file_lock(tmp_path / "home" / "locks" / "a.lock"),
    ):
        raise AssertionError("there is no lock")
