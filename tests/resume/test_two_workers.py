"""Two workers, interrupted anywhere, end with the bits of two workers that were not interrupted."""

import signal

import pytest

from components.train import checkpoint as checkpoint_room
from tests.resume.pair import DONE, STOPPED, Pair, die
from tests.resume.small_training import PER_EPOCH, same

STEPS = 2 * PER_EPOCH


def asked_to_stop_after(steps):
    def check(training):
        if training.state.position.step == steps - 1:
            training.stop.received = signal.SIGTERM

    return check


def killed_in_step(steps):
    def check(training):
        if training.state.position.step == steps:
            die()

    return check


def killed_in_write(training):
    """The main worker dies while it writes the second checkpoint's tensors."""
    plain, calls = checkpoint_room.save_file, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) > 7:
            die()
        return plain(*args, **kwargs)

    if training.state.position.step == 0:
        checkpoint_room.save_file = dies
    training.checkpoints.wait_until_written()  # on a slow disk one checkpoint would last the whole training


def killed_in_upload(training):
    """The main worker dies while the second checkpoint is on its way to the store."""
    store = training.checkpoints
    if training.state.position.step == 0:
        plain, copies = store._mirror._upload, []

        def dies(local, artifact):
            copies.append(artifact)
            if copies.count("checkpoints/a") + copies.count("checkpoints/b") > 1:
                die()
            plain(local, artifact)

        store._mirror._upload = dies
    store.wait_until_written()  # only then is its copy in the copying thread's queue
    store._threads.copy.submit(lambda: None).result()


INTERRUPTIONS = {
    "stopped after the first step": (asked_to_stop_after(1), 0, STOPPED),
    "stopped in the middle of an epoch": (asked_to_stop_after(3), 0, STOPPED),
    "stopped after the last batch of an epoch": (asked_to_stop_after(PER_EPOCH), 0, STOPPED),
    "stopped after the very last step": (asked_to_stop_after(STEPS), 0, STOPPED),
    "killed before the first step": (killed_in_step(0), 0, -9),
    "the other worker killed in mid-epoch": (killed_in_step(PER_EPOCH + 2), 1, -9),
    "killed in the write of a checkpoint": (killed_in_write, 0, -9),
    "killed in the upload of a checkpoint": (killed_in_upload, 0, -9),
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted trainings, made once each."""
    made = {}

    def of(attack):
        if attack not in made:
            pair = Pair(data, tmp_path_factory.mktemp("pair"), attack)
            assert pair.run() == [DONE, DONE]
            made[attack] = pair.final()
        return made[attack]

    return of


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("attack", ["clean", "adversarial"])
def test_ends_with_the_same_bits(data, whole, tmp_path, attack, interruption):
    interrupt, victim, code = INTERRUPTIONS[interruption]
    pair = Pair(data, tmp_path, attack, checkpoint_interval_s=0)
    assert pair.run(interrupt, victim)[victim] == code
    assert pair.run() == [DONE, DONE]
    same(pair.final(), whole(attack))
    if code == STOPPED:
        assert pair.steps_taken() < STEPS, "it went on and did not start over"


@pytest.mark.parametrize("begins_with", [1, 2])
def test_goes_on_with_another_number_of_workers(data, whole, tmp_path, monkeypatch, capfd, begins_with):
    """A cluster that shrank or grew: the same batches and schedule, other sums."""
    import torch

    from components.errors import Terminated
    from tests.resume.small_training import job_of
    from tests.resume.test_train_resume import _train

    torch.set_num_threads(1)
    pair, stop = Pair(data, tmp_path, "adversarial"), asked_to_stop_after(PER_EPOCH + 2)
    if begins_with == 2:
        assert pair.run(stop)[0] == STOPPED
        steps = []
        final, _ = _train(
            monkeypatch, job_of(data, tmp_path, "adversarial"), lambda t: steps.append(t.state.position.step)
        )
        assert steps[0] == PER_EPOCH + 2
    else:
        with pytest.raises(Terminated):
            _train(monkeypatch, job_of(data, tmp_path, "adversarial"), stop)
        assert pair.run() == [DONE, DONE]
        assert pair.steps_taken() == STEPS - PER_EPOCH - 2
        final = pair.final()
    printed = capfd.readouterr().err
    assert printed.count(f"had {begins_with} workers so far and goes on with {3 - begins_with}") == 1
    for one, two in zip(final.metadata["history"], whole("adversarial").metadata["history"], strict=True):
        assert (one["step"], one["lr"]) == (two["step"], two["lr"])
        for figure in ("loss", "grad_norm", "attack_gain"):
            assert one[figure] == pytest.approx(two[figure], rel=1e-3), figure


def test_two_workers_compute_what_one_does_but_for_rounding(data, whole, tmp_path, monkeypatch):
    import torch

    from tests.resume.small_training import job_of
    from tests.resume.test_train_resume import _train

    torch.set_num_threads(1)
    alone, _ = _train(monkeypatch, job_of(data, tmp_path, "adversarial"))
    together = whole("adversarial")
    for one, two in zip(alone.metadata["history"], together.metadata["history"], strict=True):
        for figure in ("loss", "grad_norm", "attack_gain"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-4), figure
        assert two["lr"] == one["lr"]
