"""A Ray of our own: tried again where its start timed out, refused at once where the options are wrong."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import UserError
from components.launch import ray_cluster

ROOT = Path(__file__).resolve().parents[2]


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
    caplog.set_level("WARNING", "components.launch.ray_cluster")
    calls, failures = started
    failures += [Exception("The current node timed out during startup."), RuntimeError("no port")]
    ray_cluster.start_ray(num_cpus=2)
    options = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": 2}
    configs = [call.pop("job_config") for call in calls if isinstance(call, dict)]
    assert len(configs) == 3
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


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_has_ended_is_an_error_at_once(started, monkeypatch, closed_port, scheme):
    """Ray waits a quarter of an hour for it, without a message."""
    address = f"{scheme}127.0.0.1:{closed_port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS: no Ray cluster answers.*\(got '{address}'\)\. .*unset it"):
        ray_cluster.connect_ray()
    assert started[0] == []


def test_a_cluster_that_listens_is_connected_to(started, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        ray_cluster.connect_ray(log_to_driver=False)
    (options,) = started[0]
    assert (options["address"], options["log_to_driver"]) == (address, False)


def test_that_ray_itself_finds_no_cluster_is_the_same_error(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    started[1].append(ConnectionError("Could not find any running Ray instance."))
    with pytest.raises(UserError, match=r"^RAY_ADDRESS: .*Could not find any running Ray instance"):
        ray_cluster.connect_ray()


DRIVER = """
import sys
from components.launch.ray_cluster import start_ray
import ray

def where(name):
    import importlib
    return importlib.import_module(name).__file__

start_ray(num_cpus=1, log_to_driver=False)
print(ray.get(ray.remote(where).remote("colorsys")))
ray.shutdown()
"""


def test_rays_workers_import_nothing_from_the_working_folder(tmp_path, ray_turn):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "driver.py").write_text(DRIVER)
    (tmp_path / "colorsys.py").write_text("")
    command = [sys.executable, str(tmp_path / "script" / "driver.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent.name.startswith("python3")
