"""One training on two workers: two forked processes joined by gloo, as Ray joins them, without the cost of a Ray."""

import os
import signal
import time
from multiprocessing import get_context

import torch

from components.errors import Terminated
from components.train import stage
from components.train.checkpoint import read_checkpoint, write_checkpoint
from components.train.distributed import Distributed
from components.train.loop import Training
from tests.resume.small_training import job_of

FINGERPRINT = "a" * 64
DONE, STOPPED = 0, 15


class Pair:
    """Two workers of one training in `folder`; every `run` is one life of both."""

    def __init__(self, data, folder, attack, **change):
        self._data, self._folder, self._attack, self._change = data, folder, attack, change
        self._life = 0
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, interrupt=None, victim=0):
        """Trains; `interrupt(training or None)` is called before every step in the worker of rank `victim`.

        When one worker ends early the other is killed, as Ray does. Returns both exit codes, -9 for SIGKILL.
        """
        self._life += 1
        context = get_context("fork")
        workers = [
            context.Process(target=self._work, args=(rank, interrupt if rank == victim else None)) for rank in (0, 1)
        ]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            if any(worker.exitcode not in (None, DONE) for worker in workers):
                for worker in workers:
                    worker.kill()
            time.sleep(0.02)
        return [worker.exitcode for worker in workers]

    def final(self):
        """The last state of the main worker."""
        (place,) = (self._folder / "final").iterdir()
        return read_checkpoint(place, FINGERPRINT)

    def steps_taken(self):
        """The number of steps of the last life."""
        taken = self._folder / f"steps-{self._life}"
        return len(taken.read_text().split()) if taken.exists() else 0

    def _work(self, rank, interrupt):
        code = 1
        try:
            self._train(rank, interrupt)
            code = DONE
        except Terminated:
            code = STOPPED
        finally:
            os._exit(code)

    def _train(self, rank, interrupt):
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        rendezvous = f"file://{self._folder}/rendezvous-{self._life}"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
        step, finish = Training._step, stage._finish

        def watched(training, batch):
            if rank == 0:
                with (self._folder / f"steps-{self._life}").open("a") as file:
                    file.write(f"{training.state.position.step} ")
            if interrupt is not None:
                interrupt(training)
            step(training, batch)

        def kept(job, training, card):
            if rank == 0:
                write_checkpoint(self._folder / "final", training.state.snapshot(), FINGERPRINT)
            return finish(job, training, card)

        Training._step, stage._finish = watched, kept
        stage.work(job_of(self._data, self._folder, self._attack, **self._change), Distributed(rank, 2))


def die():
    """Ends this process at once, as SIGKILL from outside."""
    os.kill(os.getpid(), signal.SIGKILL)
