"""Kills runs of `tests/e2e/tiny.yaml` at random moments: what is left afterwards, and what the next run does.

    python -m tests.faults.kill_moments --moments 20 --seed 1

By turns: SIGINT, SIGTERM, SIGKILL of the command, SIGKILL of a stage's process. Ten seconds after each, no process may
be left; the next run has to end complete, with the files of models (sha256) of a run that nobody disturbed. Prints a
table; exit status 1 if anything is wrong.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "tests/e2e/tiny.yaml"
KILLS = ("SIGINT", "SIGTERM", "SIGKILL", "SIGKILL of a stage")
LEFT_SECONDS = 10.0


@dataclass
class Moment:
    """One kill, and what followed."""

    kill: str
    seconds: float
    at: str = ""
    status: int | None = None
    ended_after: float = 0.0
    left: list[str] = field(default_factory=list)
    next_run: str = ""
    wrong: list[str] = field(default_factory=list)

    def __str__(self):
        verdict = "; ".join(self.wrong) or "ok"
        left = ", ".join(self.left) or "none"
        return (
            f"{self.kill:<18} {self.seconds:6.1f} s  {self.at:<34} status {self.status!s:>4}, gone after "
            f"{self.ended_after:4.1f} s, left: {left}; next run: {self.next_run}: {verdict}"
        )


def start(home, log):
    """Starts a run of the recipe."""
    environment = {**os.environ, "ROBUSTRAIN_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.cli", "run", RECIPE]
    with log.open("w") as file:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)


def family(process):
    """The command and all that descends from it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(process.pid)
        return [command, *command.children(recursive=True)]
    return []


def stages(process):
    """Processes of stages: they lead a session of their own."""
    found = []
    for child in family(process)[1:]:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(child.pid) == child.pid:
                found.append(child)
    return found


def alive(process):
    """Whether a process lives; a zombie does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def disturb(home, log, moment):
    """Runs the recipe and kills at the moment; notes what happened."""
    process, began = start(home, log), time.monotonic()
    known = {}
    while process.poll() is None and time.monotonic() - began < moment.seconds:
        known.update((p.pid, p) for p in family(process))
        time.sleep(0.02)
    if process.poll() is not None:
        moment.at, moment.status = "the run had ended before", process.returncode
        return
    moment.at = ", ".join(working(home)) or "before any stage"
    killed = time.monotonic()
    if moment.kill == "SIGKILL of a stage":
        victims = []
        while not victims and process.poll() is None:
            victims = stages(process)
        for victim in victims[:1]:
            killed = time.monotonic()
            victim.kill()
    else:
        process.send_signal(getattr(signal, moment.kill))
    known.update((p.pid, p) for p in family(process))
    while time.monotonic() - killed < LEFT_SECONDS and (process.poll() is None or any(map(alive, known.values()))):
        known.update((p.pid, p) for p in family(process))
        time.sleep(0.02)
    moment.ended_after, moment.status = time.monotonic() - killed, process.poll()
    for survivor in filter(alive, known.values()):
        with contextlib.suppress(psutil.NoSuchProcess):
            moment.left.append(f"{survivor.pid} {' '.join(survivor.cmdline())[:60]}")
            survivor.kill()
    process.wait()


def working(home):
    """Stages whose last live report says that they run."""
    found = []
    folders = sorted((home / "live").glob("*"))
    for report in sorted(folders[-1].glob("*.json")) if folders else []:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(report.read_text()).get("state") == "running":
                found.append(report.stem)
    return found


def models(home):
    """Stage -> sha256 of its model's files, of the newest pipeline run."""
    from components.store.settings import StorageSettings
    from components.store.tracking import Tracking

    tracking = Tracking(StorageSettings.from_environment({}, home=home))
    run = tracking.last_pipeline_runs()[0]
    assert run["state"] == "complete", run
    found = {}
    for name, (run_id, _) in tracking.stages_of(run["run_id"]).items():
        folder = tracking.artifacts(tracking.client.get_run(run_id)).folder
        files = sorted((folder / "model").rglob("*.safetensors"))
        if files:
            found[name] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return found


def judge(moment, home, log, expected):
    """Starts the next run and compares its models."""
    if moment.left:
        moment.wrong.append("processes are left")
    wanted = {"SIGINT": 130, "SIGTERM": 130, "SIGKILL": -9, "SIGKILL of a stage": 1}[moment.kill]
    if moment.at != "the run had ended before" and moment.status != wanted:
        moment.wrong.append(f"exit status {moment.status}, not {wanted}")
    status = start(home, log).wait()
    if status:
        moment.next_run = f"status {status}"
        moment.wrong.append(log.read_text()[-500:])
        return
    reused = sum(": reused from run" in line for line in log.read_text().splitlines())
    same = models(home) == expected
    moment.next_run = f"complete, {reused} stages reused, {'equal' if same else 'OTHER'} weights"
    if not same:
        moment.wrong.append("other weights")


def run(count, seed):
    """Kills `count` runs, each in a home of its own; returns the moments, one printed line each."""
    chance, done = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="robustrain-moments-") as folder:
        home, log = Path(folder) / "undisturbed", Path(folder) / "log"
        began = time.monotonic()
        assert start(home, log).wait() == 0, log.read_text()
        whole = time.monotonic() - began
        expected = models(home)
        print(f"undisturbed: {whole:.1f} s, {len(expected)} models, seed {seed}", flush=True)
        for number in range(count):
            moment = Moment(KILLS[number % len(KILLS)], chance.uniform(0, whole))
            home = Path(folder) / f"home-{number}"
            disturb(home, log, moment)
            judge(moment, home, log, expected)
            done.append(moment)
            print(f"{number + 1:>2} {moment}", flush=True)
    return done


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    done = run(options.moments, options.seed)
    wrong = [moment for moment in done if moment.wrong]
    print(f"{len(done) - len(wrong)} of {len(done)} moments: nothing left, the next run complete with equal weights")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
