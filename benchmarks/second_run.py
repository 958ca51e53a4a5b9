"""How long a pipeline takes when all of it can be reused.

    python benchmarks/second_run.py [--json] [--quick] [--recipe tests/e2e/tiny.yaml] [--home FOLDER]

Runs `robustrain run RECIPE` twice in a temporary home and times both. With --home, a home in which the recipe has
already finished: then only once. A stage that would not be reused ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Run as a file, Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import Row, row, show

GOAL_SECONDS = 20.0
_TINY = "tests/e2e/tiny.yaml"
_ONE_STAGE = """\
name: quick
summary: one stage, to see whether this benchmark runs
stages:
  encode: {source: digits, max_short_side: 32, mode: raw, max_train_images: 20, max_val_images: 10}
"""


def run(recipe: str, home: Path) -> float:
    """Seconds of one `robustrain run`.

    Raises:
        SystemExit: it failed; its last words are the message.
    """
    command = [sys.executable, "-m", "pipeline.cli", "run", recipe]
    environment = {**os.environ, "ROBUSTRAIN_HOME": str(home)}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    spent = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"robustrain run {recipe} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return spent


def reused_run(recipe: str, home: Path) -> float:
    """Seconds of a run in which every stage is reused.

    Raises:
        SystemExit: a stage was not.
    """
    command = [sys.executable, "-m", "pipeline.cli", "plan", recipe, "--json"]
    environment = {**os.environ, "ROBUSTRAIN_HOME": str(home)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    others = [stage["name"] for stage in json.loads(told.stdout) if stage["action"] != "reuse"]
    if others:
        sys.exit(f"these stages are not finished in {home}: {', '.join(others)}")
    return run(recipe, home)


def measure(recipe: str, home: Path, *, finished: bool) -> list[Row]:
    name = Path(recipe).stem
    rows = [] if finished else [row(f"first run of {name}", run(recipe, home), "s")]
    return rows + [row(f"second run of {name}, all reused", reused_run(recipe, home), "s", most=GOAL_SECONDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a recipe of one stage: whether it runs, not how fast")
    parser.add_argument("--recipe", default=_TINY, help="a recipe's name or file")
    parser.add_argument("--home", type=Path, help="a home in which the recipe has finished")
    options = parser.parse_args()
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
