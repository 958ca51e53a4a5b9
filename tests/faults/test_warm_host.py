"""The warm host: calls answer, errors travel, a killed child is noticed, nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from components.errors import UserError
from components.launch import warm

CALLS = """
import os, signal, sys, time
from components.errors import UserError
def double(x): print("doubling", x); return {"value": 2 * x, "pid": os.getpid(), "preloaded": "decimal" in sys.modules}
def complain(): raise UserError("no such eps", where="attack.eps", value=3, remedy="use 4/255")
def stumble(): raise RuntimeError("inside")
def die(): os.kill(os.getpid(), signal.SIGKILL)
def sleep(path): open(path, "w").write(str(os.getpid())); time.sleep(60)
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    (folder / "calls.py").write_text(CALLS)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}:{before}"
    with warm.hosted(folder, ("json",)) as socket:
        os.environ["PYTHONPATH"] = before
        os.environ[warm.SOCKET_VARIABLE] = socket
        yield folder
        del os.environ[warm.SOCKET_VARIABLE]


def test_call_runs_in_a_child_and_logs(host):
    log = host / "double.log"
    first = warm.call("calls:double", log, x=21)
    second = warm.call("calls:double", log, x=4, preload=("decimal",))
    assert (first["value"], second["value"]) == (42, 8)
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert second["preloaded"]
    assert log.read_text().splitlines() == ["doubling 21", "doubling 4"]


def test_user_error_keeps_its_words(host):
    with pytest.raises(UserError) as caught:
        warm.call("calls:complain", host / "log")
    assert str(caught.value) == "attack.eps: no such eps (got 3). use 4/255."


def test_other_errors_are_told_and_traced_in_the_log(host):
    with pytest.raises(warm.CallFailed, match="RuntimeError: inside"):
        warm.call("calls:stumble", host / "stumble.log")
    assert "Traceback" in (host / "stumble.log").read_text()


def test_killed_child_is_noticed(host):
    with pytest.raises(warm.CallFailed, match="killed"):
        warm.call("calls:die", host / "log")
    assert warm.call("calls:double", host / "log", x=1)["value"] == 2


def test_host_takes_its_children_with_it(tmp_path):
    (tmp_path / "calls.py").write_text(CALLS)
    mark = tmp_path / "pid"
    script = textwrap.dedent(f"""
        import os, pathlib, threading, time
        from components.launch import warm
        with warm.hosted(pathlib.Path({str(tmp_path)!r})) as socket:
            os.environ[warm.SOCKET_VARIABLE] = socket
            work = lambda: warm.call("calls:sleep", pathlib.Path({str(tmp_path / "log")!r}), path={str(mark)!r})
            threading.Thread(target=work, daemon=True).start()
            time.sleep(60)
    """)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}:{os.getcwd()}"}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment)
    until(mark.exists)
    child = int(mark.read_text())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    socket = Path(f"/tmp/robustrain-{driver.pid}.sock")
    until(lambda: not alive(child) and not socket.exists())
    assert not alive(child)
    assert not socket.exists()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def test_without_a_host_the_call_is_made_here(tmp_path, monkeypatch):
    monkeypatch.delenv(warm.SOCKET_VARIABLE, raising=False)
    assert warm.call("math:gcd", tmp_path / "log") == 0
