"""Trainings that are killed at random moments, through the real step, store and tracking.

    python -m tests.resume.chaos --trials 50 --seed 1 [--ray 4]

One trial: the stage is started in a process of its own, gets SIGKILL at a random moment once or several times, is
started again each time, and has to end with the bytes of a run that nobody disturbed. In `--ray` trials the training
has two real Ray workers, and the victim is the driver, a worker, or everything. Exit status 1 where a trial failed.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from components.process import session_members
from tests.resume.small_training import TIMED

TRAINING = {
    "init": "random",
    "data": "digits",
    "model": {"name": "convnext_micro", "stem": "conv", "kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "resolution": 32,
    "epochs": 4,
    "batch_size": 16,
    "warmup_epochs": 1,
    "ema_decay": 0.9,
    "mixup": 0.8,
    "attack": {"norm": "Linf", "eps": 0.1, "steps": 2},
    "validation": {"every_epochs": 2, "max_images": 16, "fraction": 0.15, "steps": 2},
    "checkpoint_interval_s": 0,
    "checkpoint_min_interval_s": 0,
    "device": "cpu",
    "loader": "native",
    "num_threads": 1,
}
DATA = {
    "kind": "encode",
    "source": "digits",
    "max_short_side": 32,
    "mode": "raw",
    "max_train_images": 100,
    "max_val_images": 20,
}
MOST_KILLS = 3


@dataclass(frozen=True)
class Trial:
    """What happened: kills with the second each came at, and whether the bytes are the undisturbed run's."""

    kills: list[tuple[str, float]]
    same: bool

    def __str__(self):
        how = ", ".join(f"{who} after {seconds:.2f} s" for who, seconds in self.kills) or "none"
        return f"{'same bytes' if self.same else 'OTHER BYTES'}; killed: {how}"


class Chaos:
    """The stage to be disturbed, and what it makes when it is left alone.

    Args:
        home: a folder that is not there yet.
        workers: of the training; 0: in the stage's own process, 2: real Ray workers.
    """

    def __init__(self, home, workers=0):
        self.home, self._workers = home, workers
        home.mkdir(parents=True)
        assert self._life(0, last="digits")[0] == 0, "the images could not be encoded"
        start = time.monotonic()
        assert self._life(0)[0] == 0, f"the undisturbed run failed; see {home / 'life.log'}"
        self.seconds, self.expected = time.monotonic() - start, self._outcome(0)

    def trial(self, number, chance):
        """Disturbs run `number`, from 1, as the random numbers of `chance` say."""
        kills = []
        for _ in range(chance.randint(1, MOST_KILLS)):
            moment = chance.uniform(0, self.seconds)
            status, victim = self._life(number, chance, moment)
            if victim:
                kills.append((victim, moment))
            if status == 0:
                break
        status = self._life(number)[0]
        return Trial(kills, status == 0 and self._outcome(number) == self.expected)

    def _recipe(self, number):
        """Gives every run stages of its own: a threshold that nothing reaches makes their fingerprints differ."""
        from pipeline.recipe import build

        health = {"collapse_drop": 0.9 + number * 1e-6}
        stages = {"digits": DATA, "adversarial": {**TRAINING, "num_workers": self._workers, "monitor": health}}
        return build({"name": "chaos", "seed": 5, "stages": stages})

    def _life(self, number, chance=None, moment=0.0, last="adversarial"):
        """Starts the stage; kills something at `moment` where there is a chance; returns (exit status, victim)."""
        child, start, victim = self._start(number, last), time.monotonic(), ""
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if chance is not None and not victim and time.monotonic() - start >= moment:
                victim = kill_one(child, chance)
            time.sleep(0.005)
        for process in session_members(child):
            kill(process)
        return status, victim

    def _start(self, number, last):
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            log = os.open(self.home / "life.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            self._live(number, last)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _live(self, number, last):
        """Brings the stages up to `last` to completion in this process."""
        from pipeline.kfp_step import run_step
        from pipeline.stage_runner import stage_definition_json

        os.environ.update(ROBUSTRAIN_HOME=str(self.home), ROBUSTRAIN_CORES="1")
        recipe, tokens = self._recipe(number), {}
        for name, stage in recipe.stages.items():
            parents = [tokens[parent] for parent in stage.parents.values()]
            tokens[name] = run_step(stage_definition_json(stage, recipe), parents)
            if name == last:
                break
        (self.home / f"{number}.token").write_text(tokens[last])

    def _outcome(self, number):
        """Digest of the trained weights, and the history without what clocks measured."""
        run = (self.home / f"{number}.token").read_text().split("/")[0]
        artifacts = self.home / "artifacts" / run / "artifacts"
        history = json.loads((artifacts / "history.json").read_text())
        weights = (artifacts / "model" / "weights.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest(), [{k: v for k, v in e.items() if k not in TIMED} for e in history]


def kill_one(leader, chance):
    """SIGKILLs the stage's process, or with Ray one of driver, worker, everything; says which."""
    processes = session_members(leader)
    workers = [process for process in processes if "RayTrainWorker" in title(process)]
    victim = chance.choice(["stage", "worker", "everything"] if workers else ["stage"])
    for process in {"stage": [leader], "worker": workers[:1], "everything": processes}[victim]:
        kill(process)
    return victim


def kill(process):
    """SIGKILL; nothing where it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def title(process):
    """How a process calls itself; empty when it is gone."""
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(process) / "cmdline").read_bytes().decode(errors="replace")
    return ""


def preload():
    """Imports once what every life needs: children are forked from here, and nothing is computed in this process."""
    for module in ("components.train.stage", "components.data.stage", "mlflow.tracking", "ray.train.torch"):
        importlib.import_module(module)


def run(trials, seed, ray_trials=0):
    """Runs the trials and returns them; one line each is printed."""
    preload()
    done, chance = [], random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="robustrain-chaos-") as folder:
        for kind, count, workers in (("here", trials - ray_trials, 0), ("ray", ray_trials, 2)):
            if count:
                chaos = Chaos(Path(folder) / kind, workers)
                for number in range(1, count + 1):
                    done.append(chaos.trial(number, chance))
                    print(f"trial {len(done)}/{trials} ({kind}): {done[-1]}", flush=True)
    return done


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ray", type=int, default=2, help="how many of the trials have two Ray workers")
    options = parser.parse_args()
    done = run(options.trials, options.seed, min(options.ray, options.trials))
    good = sum(trial.same for trial in done)
    kills = sum(len(trial.kills) for trial in done)
    print(f"{good} of {len(done)} trials ended with the undisturbed run's weights; {kills} kills, seed {options.seed}")
    sys.exit(0 if good == len(done) else 1)


if __name__ == "__main__":
    main()
