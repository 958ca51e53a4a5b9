"""An interrupted training ends with the uninterrupted one's weights, bit for bit."""

import json
import shutil
import signal

import pytest
import torch

from components.errors import Terminated
from components.train import checkpoint, stage
from components.train.config import CONFIGS
from components.train.distributed import Distributed
from components.train.loop import Training
from tests.resume.small_training import ATTACKS, PER_EPOCH, Run, config_of, job_of, same


def _train(monkeypatch, job, before_step=None):
    """Runs the stage; `before_step(training)` may interrupt it. Returns a snapshot of the final state, and the result."""
    kept = []
    with monkeypatch.context() as patch:
        train_step, finish = Training._step, stage._finish

        def watched(self, batch):
            if before_step is not None:
                before_step(self)
            train_step(self, batch)

        patch.setattr(Training, "_step", watched)
        patch.setattr(
            stage,
            "_finish",
            lambda job, training, card: (kept.append(training.state.snapshot()), finish(job, training, card))[1],
        )
        result = stage.work(job, Distributed())
    return kept[0], result


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted trainings, made once each."""
    made = {}

    def of(attack):
        if attack not in made:
            with pytest.MonkeyPatch.context() as patch:
                torch.set_num_threads(1)
                made[attack] = _train(patch, job_of(data, tmp_path_factory.mktemp("whole"), attack))
        return made[attack]

    return of


class Killed(BaseException):
    """SIGKILL seen from inside: nothing more is done."""


def _asked_to_stop_after(steps):
    def check(training):
        if training.state.position.step == steps - 1:
            training.stop.received = signal.SIGTERM

    return check


def _killed_in_step(steps):
    def check(training):
        if training.state.position.step == steps:
            raise Killed

    return check


INTERRUPTIONS = {
    "stopped after the first step": (_asked_to_stop_after(1), Terminated),
    "stopped in the middle of an epoch": (_asked_to_stop_after(3), Terminated),
    "stopped after the last batch of an epoch": (_asked_to_stop_after(PER_EPOCH), Terminated),
    "stopped after the first batch of the next": (_asked_to_stop_after(PER_EPOCH + 1), Terminated),
    "stopped after the very last step": (_asked_to_stop_after(2 * PER_EPOCH), Terminated),
    "killed before the first step": (_killed_in_step(0), Killed),
    "killed before a checkpoint was taken": (_killed_in_step(2), Killed),
    "killed after an epoch's checkpoint": (_killed_in_step(PER_EPOCH + 2), Killed),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_ends_with_the_same_bits(data, whole, tmp_path, monkeypatch, attack, interruption):
    expected, result = whole(attack)
    interrupt, raised = INTERRUPTIONS[interruption]
    with pytest.raises(raised):
        _train(monkeypatch, job_of(data, tmp_path, attack), interrupt)
    steps = []
    resumed, again = _train(monkeypatch, job_of(data, tmp_path, attack), lambda t: steps.append(t.state.position.step))
    same(resumed, expected)
    assert again == result
    if raised is Terminated:
        assert 2 * PER_EPOCH - len(steps) > 0, "it went on and did not start over"


def test_stopped_twice(data, whole, tmp_path, monkeypatch):
    for steps in (2, 7):
        with pytest.raises(Terminated):
            _train(monkeypatch, job_of(data, tmp_path, "adversarial"), _asked_to_stop_after(steps))
    same(_train(monkeypatch, job_of(data, tmp_path, "adversarial"))[0], whole("adversarial")[0])


@pytest.mark.parametrize("attack", ["clean", "adversarial"])
@pytest.mark.parametrize("dies_in", ["save_file", "write_json"])
def test_killed_while_a_checkpoint_is_written(data, whole, tmp_path, monkeypatch, attack, dies_in):
    with monkeypatch.context() as patch:
        plain, calls = getattr(checkpoint, dies_in), []

        def dies(*args, **kwargs):
            calls.append(1)
            if len(calls) > 7:
                raise Killed
            return plain(*args, **kwargs)

        patch.setattr(checkpoint, dies_in, dies)
        with pytest.raises(Killed):
            _train(
                monkeypatch,
                job_of(data, tmp_path, attack, checkpoint_interval_s=0),
                lambda t: t.checkpoints.wait_until_written(),
            )
    same(_train(monkeypatch, job_of(data, tmp_path, attack, checkpoint_interval_s=0))[0], whole(attack)[0])


@pytest.mark.parametrize("attack", ["clean", "adversarial"])
@pytest.mark.parametrize("disk", ["kept", "new"])
def test_killed_while_a_checkpoint_is_uploaded(data, whole, tmp_path, monkeypatch, attack, disk):
    """The process dies in the middle of the third copy; on a new disk only the previous copy is left."""
    plain, copies = Run.save, []

    def dies(run, local, artifact):
        if local.is_dir() and artifact.startswith("checkpoints"):
            copies.append(artifact)
            if len(copies) >= 3:
                (run.artifacts / artifact / "model.safetensors").write_bytes(b"half")
                raise Killed
        plain(run, local, artifact)

    def ends_with_it(training):
        if len(copies) >= 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", dies)
        with pytest.raises(Killed):
            _train(monkeypatch, job_of(data, tmp_path, attack, checkpoint_interval_s=0), _after_the_copy(ends_with_it))
    if disk == "new":
        shutil.rmtree(tmp_path / "work")
    steps = []
    resumed, _ = _train(monkeypatch, job_of(data, tmp_path, attack), lambda t: steps.append(t.state.position.step))
    same(resumed, whole(attack)[0])
    assert steps[0] > 0, "it went on and did not start over"


def _after_the_copy(check):
    """Waits before every step until the newest checkpoint is written and its copy has ended."""

    def before_step(training):
        training.checkpoints.wait_until_written()  # only then is its copy in the copying thread's queue
        training.checkpoints._threads.copy.submit(lambda: None).result()
        check(training)

    return before_step


def test_it_goes_on_with_the_threads_it_began_with(data, whole, tmp_path, monkeypatch):
    """Sums over threads depend on their number, and the machine that continues may have more or fewer cores."""
    torch.set_num_threads(1)
    with pytest.raises(Terminated):
        _train(monkeypatch, job_of(data, tmp_path, "clean"), _asked_to_stop_after(3))
    torch.set_num_threads(2)
    try:
        resumed, _ = _train(monkeypatch, job_of(data, tmp_path, "clean"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    same(resumed, whole("clean")[0])


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_request_to_end_during_a_validation_is_obeyed_at_once(data, whole, tmp_path, monkeypatch, epoch):
    from components.train import loop

    plain, validated = loop.validate_ema, []

    def asked_meanwhile(model, batches, config, distributed, *, progress):
        def watched(images):
            validated.append(images)
            if asking["training"].state.position.epoch == epoch - 1:
                asking["training"].stop.received = signal.SIGTERM
            progress(images)

        return plain(model, batches, config, distributed, progress=watched)

    asking = {}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate_ema", asked_meanwhile)
        with pytest.raises(Terminated):
            _train(monkeypatch, job_of(data, tmp_path, "clean"), lambda t: asking.update(training=t))
    state = json.loads(sorted((tmp_path / "work" / "checkpoints").glob("step-*/state.json"))[-1].read_text())
    assert (state["epoch"], state["batch"], len(state["history"])) == (epoch - 1, PER_EPOCH, epoch - 1)
    same(_train(monkeypatch, job_of(data, tmp_path, "clean"))[0], whole("clean")[0])


def test_half_precision_with_a_loss_scaler_goes_on_exactly(data, tmp_path, monkeypatch):
    """Its scale starts so high that the first steps overflow and are skipped."""
    from components.train import state

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(state.torch.amp, "GradScaler", lambda device: scaler(device, init_scale=2.0**40))
    torch.set_num_threads(1)
    change = {"precision": "fp16"}
    expected, result = _train(monkeypatch, job_of(data, tmp_path / "whole", "adversarial", **change))
    assert expected.metadata["scaler"]["scale"] < 2.0**40
    first = expected.metadata["history"][0]
    assert 0 < first["left_out"] <= 1
    with pytest.raises(Terminated):
        _train(monkeypatch, job_of(data, tmp_path, "adversarial", **change), _asked_to_stop_after(3))
    resumed, again = _train(monkeypatch, job_of(data, tmp_path, "adversarial", **change))
    same(resumed, expected)
    assert again == result


def test_from_artifacts_on_another_machine(data, whole, tmp_path, monkeypatch):
    with pytest.raises(Terminated):
        _train(monkeypatch, job_of(data, tmp_path, "clean"), _asked_to_stop_after(7))
    shutil.rmtree(tmp_path / "work")
    steps = []
    resumed, _ = _train(monkeypatch, job_of(data, tmp_path, "clean"), lambda t: steps.append(t.state.position.step))
    assert steps[0] == 7
    same(resumed, whole("clean")[0])


def test_a_damaged_checkpoint_costs_work_but_no_bits(data, whole, tmp_path, monkeypatch, capsys):
    with pytest.raises(Terminated):
        _train(monkeypatch, job_of(data, tmp_path, "clean"), _asked_to_stop_after(7))
    shutil.rmtree(tmp_path / "artifacts")
    newest = sorted((tmp_path / "work" / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"torn")
    steps = []
    resumed, _ = _train(monkeypatch, job_of(data, tmp_path, "clean"), lambda t: steps.append(t.state.position.step))
    assert steps[0] == PER_EPOCH
    assert "is not used" in capsys.readouterr().err
    same(resumed, whole("clean")[0])


def test_checkpoints_more_or_less_often_change_nothing(data, whole, tmp_path, monkeypatch):
    often, _ = _train(monkeypatch, job_of(data, tmp_path, "clean", checkpoint_interval_s=0))
    assert len(list((tmp_path / "work" / "checkpoints").glob("step-*"))) == 2
    same(often, whole("clean")[0])


def test_training_that_matches_the_released_code_with_heavy_augmentation_resumes_too(data, tmp_path, monkeypatch):
    """Its erased pixels are outside [0, 1]; the adversarial ones are not."""
    from components.train import train_step

    seen, plain = [], train_step.find_adversarial

    def watched(model, images, *args):
        found = plain(model, images, *args)
        seen.append((images.aminmax(), found.x_adv.aminmax()))
        return found

    change = {"match_released_code": True, "augment": "heavy", "mixup": 0.0, "cutmix": 0.0}
    monkeypatch.setattr(train_step, "find_adversarial", watched)
    torch.set_num_threads(1)
    expected, _ = _train(monkeypatch, job_of(data, tmp_path / "whole", "adversarial", **change))
    with pytest.raises(Terminated):
        _train(monkeypatch, job_of(data, tmp_path, "adversarial", **change), _asked_to_stop_after(PER_EPOCH + 2))
    same(_train(monkeypatch, job_of(data, tmp_path, "adversarial", **change))[0], expected)
    assert min(float(images.min) for images, _ in seen) < 0
    assert all(float(attacked.min) >= 0 and float(attacked.max) <= 1 for _, attacked in seen)


def test_signals_reach_the_loop(data, tmp_path, monkeypatch):
    def send(training):
        if training.state.position.step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _train(monkeypatch, job_of(data, tmp_path, "clean"), send)
    assert signal.getsignal(signal.SIGINT) is before
    state = json.loads(next((tmp_path / "work" / "checkpoints").glob("step-*/state.json")).read_text())
    assert (state["step"], state["batch"]) == (3, 3)


def test_what_the_stage_leaves(data, whole, tmp_path, monkeypatch):
    from components.models import load_model

    job = job_of(data, tmp_path, "clean")
    state, result = _train(monkeypatch, job)
    model, card = load_model(tmp_path / "artifacts" / "model")
    best = state.tensors["best"]
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    assert (card.name, card.stem, card.num_classes, card.resolution, card.crop_ratio) == (
        "convnext_micro",
        "conv",
        10,
        32,
        1.0,
    )
    history = json.loads((tmp_path / "artifacts" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert [train_step for train_step, _ in job.run.metrics] == [1, 2]
    assert result["held_out"] == 15
    assert result["weights"]["rule"] == "best validation"
    assert result["clean_accuracy"] == history[result["weights"]["epoch"] - 1]["clean_accuracy"]


def test_held_out_images_are_never_trained_on(data, tmp_path, monkeypatch):
    from components.train.images import split_indices

    _, config = config_of("clean")
    train, held = split_indices(100, CONFIGS["pretrain"].model_validate(config), seed=3)
    seen = set()
    plain = Training._step
    monkeypatch.setattr(
        Training, "_step", lambda self, batch: (seen.update(batch.indices.tolist()), plain(self, batch))[1]
    )
    stage.work(job_of(data, tmp_path, "clean"), Distributed())
    assert len(held) == 15
    assert not seen & set(held)
    assert seen <= set(train)
