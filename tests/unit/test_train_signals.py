"""Requests to end: the first is noted, its echo too, and a person who insists is obeyed at once."""

import signal

import pytest

from components.errors import Terminated
from components.train import signals
from components.train.signals import StopRequests


class Insisted(BaseException):
    """What the handler of before does."""


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still, and a handler of before."""

    def insist(number, frame):
        raise Insisted

    time = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: time[0])
    before = signal.signal(signal.SIGTERM, insist)
    yield time
    signal.signal(signal.SIGTERM, before)


def test_a_signal_and_its_echo_are_one_request(now):
    with StopRequests() as stop:
        for moment in (100.0, 100.01, 100.9):
            now[0] = moment
            signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(Terminated):
            stop.raise_if_requested()


def test_a_later_second_signal_acts_as_before(now):
    with StopRequests():
        signal.raise_signal(signal.SIGTERM)
        now[0] = 102.0
        with pytest.raises(Insisted):
            signal.raise_signal(signal.SIGTERM)


def test_outside_everything_is_as_before(now):
    with StopRequests() as stop:
        pass
    with pytest.raises(Insisted):
        signal.raise_signal(signal.SIGTERM)
    assert stop.received is None
    stop.raise_if_requested()
