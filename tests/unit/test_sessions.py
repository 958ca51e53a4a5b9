"""Ending a session: all processes but Ray's own get SIGTERM, and all are gone in the end."""

import subprocess
import time

from components import process

SCRIPT = """
trap 'touch "$1"; exit' TERM
touch "$1.ready"
while :; do sleep 0.05; done
"""


def _members(folder):
    """A session of three: its leader, a process of ours, and one that calls itself as Ray's workers do."""
    (folder / "script").write_text(SCRIPT)
    named = [(name, title) for name, title in (("ours", "ours"), ("rays", "ray::RayTrainWorker"))]
    started = [f"(exec -a {title} bash {folder}/script {folder}/{name}) &" for name, title in named]
    leader = subprocess.Popen(["bash", "-c", "\n".join([*started, "wait"])], start_new_session=True)
    while not all((folder / f"{name}.ready").exists() for name, _ in named):
        time.sleep(0.02)
    return leader


def test_rays_processes_are_left_to_their_driver_until_the_grace_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    leader = _members(tmp_path)
    process.end_sessions([leader.pid])
    leader.wait()
    assert (tmp_path / "ours").exists()
    assert not (tmp_path / "rays").exists()
    assert process.session_members(leader.pid) == []


def test_sessions_that_have_ended_take_no_time(monkeypatch):
    monkeypatch.setattr(process.time, "sleep", lambda _: (_ for _ in ()).throw(AssertionError("it waited")))
    leader = subprocess.Popen(["true"], start_new_session=True)
    leader.wait()
    process.end_sessions([leader.pid])


def test_a_leader_counts_before_it_has_made_its_session():
    """A child is known by its process id before it has come so far."""
    child = subprocess.Popen(["sleep", "60"])
    assert process.session_members(child.pid) == [child.pid]
    process.end_sessions([child.pid])
    assert child.wait(20) == -15
