"""A Ray of our own: tried again where its start timed out, refused at once where the options are wrong."""

import pytest

from components.launch import ray_cluster


@pytest.fixture
def started(monkeypatch):
    """Makes `ray.init` fail as told; returns the calls."""
    import ray

    calls, failures = [], []

    def init(**options):
        calls.append(options)
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    return calls, failures


def test_a_start_that_timed_out_is_tried_again(started, caplog):
    calls, failures = started
    failures += [Exception("The current node timed out during startup."), RuntimeError("no port")]
    ray_cluster.start_ray(num_cpus=2)
    options = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": 2}
    assert calls == [options, "shutdown", options, "shutdown", options]
    assert caplog.text.count("trying again") == 2


def test_three_failures_are_enough(started):
    calls, failures = started
    failures += [Exception(f"failure {k}") for k in range(4)]
    with pytest.raises(Exception, match="failure 2"):
        ray_cluster.start_ray()
    assert calls.count("shutdown") == 3


def test_wrong_options_are_not_tried_again(started):
    calls, failures = started
    failures += [ValueError("num_cpus must be positive")]
    with pytest.raises(ValueError, match="positive"):
        ray_cluster.start_ray(num_cpus=-1)
    assert calls.count("shutdown") == 1
