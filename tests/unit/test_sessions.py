"""Ending a session: everything is told but Ray's own processes, and everything is gone in the end."""

import subprocess
import time

from pipeline import sessions

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
    monkeypatch.setattr(sessions, "GRACE_SECONDS", 0.5)
    leader = _members(tmp_path)
    sessions.end_session(leader.pid)
    leader.wait()
    assert (tmp_path / "ours").exists()
    assert not (tmp_path / "rays").exists()
    assert sessions.session_members(leader.pid) == []
