"""What a run costs of which every stage can be reused, and a first one: seconds, CPU seconds and processes.

    python benchmarks/second_run.py [--json] [--quick] [--recipe tests/e2e/tiny.yaml] [--home FOLDER]

Runs `robustrain run RECIPE` twice in a temporary home and measures both. With --home, a home in which the recipe has
already finished: then only once. A stage that would not be reused ends the benchmark.

Processes are counted by looking at the command's descendants every 5 ms, so one that lives for less time may be missed;
the command itself is counted, threads are not. CPU seconds are the kernel's, of every process that has ended: this one
becomes the parent of orphans (`PR_SET_CHILD_SUBREAPER`), so none is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# Run as a file, Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import Row, row, show

GOAL_SECONDS, GOAL_CPU_SECONDS, GOAL_PROCESSES, GOAL_FIRST_PROCESSES = 8.0, 4.0, 4, 20
_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_SECONDS = 0.005
_TINY = "tests/e2e/tiny.yaml"
_ONE_STAGE = """\
name: quick
summary: one stage, to see whether this benchmark runs
stages:
  encode: {source: digits, max_short_side: 32, mode: raw, max_train_images: 20, max_val_images: 10}
"""


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    seconds: float
    cpu_seconds: float
    processes: int


def run(recipe: str, home: Path) -> Cost:
    """Runs a recipe and returns its cost.

    Raises:
        SystemExit: it failed; the end of its output is the message.
    """
    command = [sys.executable, "-m", "pipeline.cli", "run", recipe]
    environment = {**os.environ, "ROBUSTRAIN_HOME": str(home)}
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        status, spent, cpu, seen = _watched(process.pid, started)
        process.returncode = status  # reaped below, not by `subprocess`
        if status:
            output.seek(0)
            sys.exit(f"robustrain run {recipe} failed:\n{output.read()[-2000:]}")
    return Cost(spent, cpu, seen)


def _watched(command: int, started: float) -> tuple[int, float, float, int]:
    """Waits for a command and all its descendants; returns exit status, seconds, CPU seconds, number of processes."""
    seen, over = {command}, threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            seen.update(_descendants(os.getpid()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    status, spent, cpu = 1, 0.0, 0.0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, code, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
            if pid == command:
                status, spent = os.waitstatus_to_exitcode(code), time.perf_counter() - started
    over.set()
    sampler.join()
    return status, spent, cpu, len(seen)


def _descendants(process: int) -> list[int]:
    found = [process]
    for parent in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
    return found[1:]


def reused_run(recipe: str, home: Path) -> Cost:
    """The cost of a run in which every stage is reused.

    Raises:
        SystemExit: a stage was not.
    """
    command = [sys.executable, "-m", "pipeline.cli", "plan", recipe, "--json"]
    environment = {**os.environ, "ROBUSTRAIN_HOME": str(home)}
    planned = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    others = [stage["name"] for stage in json.loads(planned.stdout) if stage["action"] != "reuse"]
    if others:
        sys.exit(f"these stages are not finished in {home}: {', '.join(others)}")
    return run(recipe, home)


def measure(recipe: str, home: Path, *, finished: bool) -> list[Row]:
    """Both runs as rows; `finished`: the recipe has finished in that home."""
    name, rows = Path(recipe).stem, []
    if not finished:
        first = run(recipe, home)
        rows += [
            row(f"first run of {name}", first.seconds, "s"),
            row(f"first run of {name}, CPU", first.cpu_seconds, "s"),
            row(f"first run of {name}, processes", first.processes, "processes", most=GOAL_FIRST_PROCESSES),
        ]
    second = reused_run(recipe, home)
    return rows + [
        row(f"second run of {name}, all reused", second.seconds, "s", most=GOAL_SECONDS),
        row(f"second run of {name}, CPU", second.cpu_seconds, "s", most=GOAL_CPU_SECONDS),
        row(f"second run of {name}, processes", second.processes, "processes", most=GOAL_PROCESSES),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a recipe of one stage: whether it runs, not how fast")
    parser.add_argument("--recipe", default=_TINY, help="a recipe's name or file")
    parser.add_argument("--home", type=Path, help="a home in which the recipe has finished")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = options.recipe
        if options.quick:
            (Path(folder) / "quick.yaml").write_text(_ONE_STAGE)
            recipe = str(Path(folder) / "quick.yaml")
        home = options.home or Path(folder) / "home"
        rows = measure(recipe, home, finished=options.home is not None)
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
