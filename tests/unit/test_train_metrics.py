"""The metrics of a training: costs, the live line, MLflow over time, and Prometheus."""

import urllib.error
import urllib.request

import pytest
import torch

from components.data.jpeg import decoder_name
from components.models import build_model, forward_macs
from components.train import metrics
from components.train.config import AdversarialConfig
from components.train.metrics import Meter, MetricsReporter, progress_note
from components.train.prometheus import MetricsServer, start_metrics_server
from components.train.train_step import AttackSettings, StepResult
from tests.small_training import NETWORK, SMALL, encoded, job, train


@pytest.mark.parametrize(
    ("attack", "forwards"),
    [
        (None, 3),
        (AttackSettings("Linf", 0.1, 1), 6),
        (AttackSettings("Linf", 0.1, 2), 8),
        (AttackSettings("Linf", 0.1, 2, return_iterate="last"), 7),
        (AttackSettings("Linf", 0.1, 1, name="fgsm"), 5),
        (AttackSettings("Linf", 0.1, 10, loss="trades"), 28),
    ],
)
def test_what_a_step_costs(attack, forwards):
    """Clean 3 forwards, APGD-2 8, without the choice of the best iterate 7."""
    assert metrics.forwards(attack) == forwards


@pytest.mark.parametrize("attack", [AttackSettings("Linf", 0.1, 2), AttackSettings("Linf", 0.1, 1, name="fgsm"), None])
def test_a_steps_cost_is_what_it_runs(attack):
    """Against a count of the forwards that a real step makes: attack gradients count twice, the update three times."""
    from components.train.train_step import Precision, train_step

    calls = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).train()
    model.register_forward_hook(lambda m, x, y: calls.append(2 if y.requires_grad else 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    images, noise = torch.rand(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    train_step(
        model,
        optimizer,
        images,
        torch.tensor([0, 1]),
        attack=attack,
        noise=noise,
        precision=Precision("cpu"),
        global_batch=2,
    )
    assert sum(calls) + 1 == metrics.forwards(attack), "the update's backward also goes by the weights"


def test_flops_are_counted_from_the_network():
    model = build_model("convnext_micro", stem="conv", num_classes=10, resolution=32, **NETWORK["kwargs"])
    assert metrics.step_flops(model, AttackSettings("Linf", 0.1, 2), resolution=32) == 16 * forward_macs(model, 32) > 0


def test_a_cpus_peak_is_not_guessed():
    assert metrics.measured_peak(torch.device("cpu"), torch.float32) is None
    assert 0.05 < metrics.memory_gib(torch.device("cpu")) < 100


def test_figures_are_means_over_images():
    meter = Meter(torch.device("cpu"))
    meter.add(StepResult(torch.tensor([8.0, 4.0, 2.0]), torch.tensor(3.0)), 4)
    meter.add(StepResult(torch.tensor([4.0, 0.0, 2.0]), torch.tensor(1.0)), 4)
    meter.waited(0.0)
    assert meter.figures() == {"loss": 1.5, "attack_gain": 0.5, "attack_flips": 0.5, "grad_norm": 2.0}
    assert meter.speed()["images_per_s"] > 0
    assert meter.speed()["data_wait"] == 0


FIGURES = {"loss": 1.25, "attack_gain": 0.5, "attack_flips": 0.25, "grad_norm": 3.0}


class Report:
    def __init__(self):
        self.metrics, self.notes, self.warnings = [], [], []

    def log_metrics(self, metrics, step=0):
        self.metrics.append((step, metrics))

    def progress(self, **update):
        self.notes.append(update)

    def warn(self, text):
        self.warnings.append(text)


def _reporter(report, **change):
    config = AdversarialConfig.model_validate({**SMALL, "attack": {"eps": 0.1}, **change})
    model = build_model("convnext_micro", stem="conv", num_classes=10, resolution=32, **NETWORK["kwargs"])
    return MetricsReporter(config, report, model, torch.device("cpu"), num_workers=2)


def test_utilisation_is_known_where_a_peak_is_and_shared_by_the_workers():
    speed = {"images_per_s": 100.0, "data_wait": 0.1}
    assert "flop_utilisation" not in _reporter(Report()).machine(speed)
    known = _reporter(Report(), peak_tflops=2).machine(speed)
    assert known["flop_utilisation"] == pytest.approx(known["flops_per_s"] / (2 * 2e12))


def test_the_live_note_and_long_epochs_in_mlflow():
    report = Report()
    reporter = _reporter(report, log_interval_s=1e-9)
    reporter.live(FIGURES, {"images_per_s": 100.0, "data_wait": 0.25}, epoch=1, batch=2, per_epoch=10)
    printed = report.notes[0]["note"]
    for part in ("epoch 2/2", "loss 1.250", "waiting 25%", "TFLOP/s", "GiB", "gradient 3", "flips 25%"):
        assert part in printed
    step, metrics = report.metrics[0]
    assert step == 12
    assert metrics["live_loss"] == 1.25
    assert metrics["live_images_per_s"] == 100
    rare = Report()
    _reporter(rare).live(FIGURES, {"images_per_s": 1.0, "data_wait": 0.0}, epoch=0, batch=1, per_epoch=10)
    assert rare.metrics == []


def test_a_tracking_server_that_is_away_is_survived():
    report = Report()
    report.log_metrics = lambda *a, **k: (_ for _ in ()).throw(ConnectionError("away"))
    reporter, speed = _reporter(report, log_interval_s=1e-9), {"images_per_s": 1.0, "data_wait": 0.0}
    reporter.live(FIGURES, speed, epoch=0, batch=7, per_epoch=10)
    reporter.epoch({**FIGURES, "epoch": 1, "step": 10}, speed)
    assert [("step 7 " in text, "away" in text) for text in report.warnings] == [(True, True), (False, True)]


def test_steps_that_a_loss_scaler_left_out_have_no_gradient_norm():
    """It meets infinite gradients on purpose; without one they have to be seen."""
    sums = torch.tensor([4.0, 0.0, 0.0])
    for scaled in (True, False):
        meter = Meter(torch.device("cpu"), scaled=scaled)
        meter.add(StepResult(sums, torch.tensor(3.0)), images=4)
        meter.add(StepResult(sums, torch.tensor(float("inf"))), images=4)
        figures = meter.figures()
        assert figures["loss"] == 1.0
        assert figures["grad_norm"] == (3.0 if scaled else float("inf"))
        assert figures.get("left_out") == (0.5 if scaled else None)


def test_a_clean_training_says_nothing_about_an_attack():
    machine = {"images_per_s": 1.0, "data_wait": 0.0, "flops_per_s": 1e9, "memory_gib": 1.0, "flop_utilisation": 0.4}
    assert "attack" not in progress_note({**FIGURES, **machine}, attacked=False)
    assert "40% of peak" in progress_note({**FIGURES, **machine}, attacked=False)


def _get(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_prometheus_reads_the_figures():
    server = MetricsServer({"stage": 'a "b"\\c'}, 0)
    server.set({"loss": 1.5, "grad_norm": float("nan")})
    kind, text = _get(server.port)
    assert kind.startswith("text/plain; version=0.0.4")
    lines = text.splitlines()
    assert "# TYPE robustrain_training_loss gauge" in lines
    assert 'robustrain_training_loss{stage="a \\"b\\"\\\\c"} 1.5' in lines
    assert 'robustrain_training_grad_norm{stage="a \\"b\\"\\\\c"} NaN' in lines
    assert text.endswith("\n")
    assert _get(server.port, "/secrets")[1] == text, "nothing else is served"
    server.close()
    with pytest.raises(urllib.error.URLError):
        _get(server.port)


def _start(port, messages=None):
    messages = [] if messages is None else messages
    return start_metrics_server(port, {}, info=messages.append, warn=messages.append)


def test_a_port_in_use_is_reported_and_training_goes_on_without_metrics():
    server, messages = MetricsServer({}, 0), []
    assert _start(server.port, messages) is None
    assert f"no metrics on 127.0.0.1:{server.port}" in messages[0]
    server.close()


def test_no_port_without_asking(monkeypatch):
    assert _start(None) is None
    monkeypatch.setenv("ROBUSTRAIN_METRICS_PORT", "0")
    opened = _start(None)
    assert opened is not None
    opened.close()


def test_a_training_shows_itself_while_it_runs(tmp_path, monkeypatch, capsys):
    """Asked from inside the last epoch's end, over the real port."""
    seen = []
    plain = MetricsReporter.epoch

    def watched(self, entry, speed):
        plain(self, entry, speed)
        seen.append(_get(self.server.port)[1])

    monkeypatch.setattr(MetricsReporter, "epoch", watched)
    made = job(encoded(tmp_path / "data", mode="jpg"), tmp_path / "run", metrics_port=0)
    train(made)
    assert made.run.params["jpeg_decoder"] == decoder_name()
    assert "http://127.0.0.1:" in capsys.readouterr().err
    assert 'robustrain_training_epochs_done{kind="pretrain",run="",stage="pretrain"} 2.0' in seen[-1]
    assert "robustrain_training_clean_accuracy" in seen[-1]
    logged = dict(made.run.metrics)[2]
    assert {"loss", "images_per_s", "data_wait", "flops_per_s", "memory_gib", "grad_norm", "lr"} <= set(logged)
    assert "epoch 1/2" in made.run.notes[0]["note"]
