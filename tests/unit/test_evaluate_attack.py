"""One block under attack: sound verdicts, and a process whose state is preserved."""

import logging
import sys

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from components.errors import UserError
from components.evaluate import pyautoattack_adapter
from components.evaluate.attack import attack_block
from components.evaluate.attack_monitor import MonitoredModel
from components.evaluate.config import Threat


def network(classes=10, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, classes)
    )


def block(model, n=12, seed=1):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images, model(images).argmax(1)


def middling(model, images, labels, norm):
    """A radius at which one half of the images or so survives an attack."""
    with torch.enable_grad():
        x = images.clone().requires_grad_()
        logits = model(x)
        gap = logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], -1e9).amax(1)
        gradient = torch.autograd.grad(gap.sum(), x)[0].flatten(1)
    dual = {"Linf": gradient.abs().sum(1), "L2": gradient.norm(dim=1), "L1": gradient.abs().amax(1)}[norm]
    return float((gap / dual).median().detach())


def shortened(attack):
    for part in (attack.apgd, attack.apgd_targeted):
        part.n_iter = part.n_iter_orig = 6
    attack.fab.n_iter, attack.square.n_queries = 5, 20
    return attack


@pytest.fixture
def quick(monkeypatch):
    """The real attacks with few iterations, for what does not depend on their strength."""
    build = pyautoattack_adapter.build
    monkeypatch.setattr(pyautoattack_adapter, "build", lambda *given, **named: shortened(build(*given, **named)))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_broken_image_has_a_verified_adversarial_image(norm, quick):
    model = network()
    images, labels = block(model, 24)
    labels[3] = (labels[3] + 1) % 10
    eps = middling(model, images, labels, norm)
    found = attack_block(model, images, labels, Threat(norm=norm, eps=eps), num_classes=10, seed=0)
    broken = [row for row, word in enumerate(found.verdict) if word not in ("robust", "wrong")]
    assert 2 < len(broken) < 23, "the radius has to break some and leave some"
    assert found.verdict[3] == "wrong"
    assert found.unverified == 0
    for row in range(24):
        clean, adversarial = images[row].double().numpy(), found.adversarial[row].double().numpy()
        delta = np.abs(adversarial - clean).ravel()
        size = {"Linf": delta.max(), "L2": np.sqrt((delta**2).sum()), "L1": delta.sum()}[norm]
        if row in broken:
            with torch.no_grad():
                alone = int(model(found.adversarial[row : row + 1]).argmax())
            assert alone == found.prediction[row] != labels[row]
            assert 0 < size <= eps * (1 + 1e-5)
            assert adversarial.min() >= -1e-6
            assert adversarial.max() <= 1 + 1e-6
            assert float(found.distance[row]) == pytest.approx(size, rel=1e-9)
        else:
            assert size == 0
            assert found.distance[row] == 0
            assert found.prediction[row] == found.clean_prediction[row]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_whole_attack_is_the_librarys_standard_version_to_the_last_bit(norm, quick):
    """Same iterations on both sides; that ours has the standard's numbers of them is another test's matter.

    Both see the network in the same memory layout, which moves the last bit on some processors.
    """
    model = network().requires_grad_(False)
    images, labels = block(model, 16)
    eps = middling(model, images, labels, norm)
    reference = shortened(
        AutoAttack(MonitoredModel(model, lambda: None), norm=norm, eps=eps, version="standard", seed=7)
    )
    state = torch.get_rng_state()
    adversarial, classes = reference.run_standard_evaluation(images.clone(), labels.clone(), batch_size=16)
    torch.set_rng_state(state)
    found = attack_block(model, images, labels, Threat(norm=norm, eps=eps), num_classes=10, seed=7)
    assert 0 < found.verdict.count("robust") < 16
    assert torch.equal(found.prediction, classes)
    assert torch.equal(found.adversarial, adversarial)


def test_parts_receive_the_survivors_and_record_which_images_they_broke(quick):
    model = network()
    images, labels = block(model, 30)
    eps = middling(model, images, labels, "Linf")
    found = attack_block(model, images, labels, Threat(eps=eps), num_classes=10, seed=0)
    assert [part["attack"] for part in found.parts] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    left = 30
    for part in found.parts:
        assert part["images"] == left
        assert part["broken"] == found.verdict.count(part["attack"])
        left -= part["broken"]
    assert left == found.verdict.count("robust") > 0
    assert found.parts[0]["broken"] > 0


@pytest.mark.parametrize("classes", [4, 5, 8, 9])
def test_fewer_than_ten_classes_do_not_end_in_an_index_error(classes, quick):
    model = network(classes)
    images, labels = block(model, 6)
    found = attack_block(model, images, labels, Threat(eps=1e-4), num_classes=classes, seed=0)
    assert found.verdict == ["robust"] * 6


def test_the_process_is_left_as_it_was(quick):
    model = network().train()
    model[0].weight.requires_grad_(False)
    images, labels = block(model, 5)
    torch.manual_seed(42)
    before, flags = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    logger = logging.getLogger("auto-attack")
    settings = logger.level, logger.propagate, list(logger.handlers)

    def tracer(*_):
        return None

    old = sys.gettrace()
    sys.settrace(tracer)
    try:
        attack_block(model, images, labels, Threat(eps=0.02), num_classes=10, seed=0)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(old)
    assert torch.equal(torch.get_rng_state(), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert (logger.level, logger.propagate, list(logger.handlers)) == settings


def test_verdicts_do_not_depend_on_the_processs_random_state(quick):
    model = network()
    images, labels = block(model, 16)
    threat = Threat(eps=middling(model, images, labels, "Linf"))
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(attack_block(model, images, labels, threat, num_classes=10, seed=5))
    assert results[0].verdict == results[1].verdict
    assert torch.equal(results[0].adversarial, results[1].adversarial)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_nothing_to_attack_when_all_are_wrong_from_the_start(n, quick):
    model = network()
    images, labels = block(model, n)
    found = attack_block(model, images, (labels + 1) % 10, Threat(eps=0.5), num_classes=10, seed=0)
    assert found.verdict == ["wrong"] * n
    assert [part["images"] for part in found.parts] == [0, 0, 0, 0]
    assert torch.equal(found.adversarial, images)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_all_broken_one_survivor_and_a_block_of_one(norm, quick):
    model = network()
    images, labels = block(model, 5)
    everything = attack_block(
        model, images, labels, Threat(norm=norm, eps=1 if norm == "Linf" else 30), num_classes=10, seed=0
    )
    assert "robust" not in everything.verdict
    wrong = (labels + 1) % 10
    wrong[2] = labels[2]
    alone = attack_block(model, images, wrong, Threat(norm=norm, eps=1e-5), num_classes=10, seed=0)
    assert alone.verdict == ["wrong", "wrong", "robust", "wrong", "wrong"]
    single = attack_block(model, images[:1], labels[:1], Threat(norm=norm, eps=1e-5), num_classes=10, seed=0)
    assert single.verdict == ["robust"]


def test_memory_layout_of_the_images_does_not_matter(quick):
    model = network()
    images, labels = block(model, 8)
    threat = Threat(norm="L1", eps=middling(model, images, labels, "L1"), attack="apgd-ce")
    straight = attack_block(model, images, labels, threat, num_classes=10, seed=0)
    for other in (
        images.to(memory_format=torch.channels_last),
        images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    ):
        assert attack_block(model, other, labels, threat, num_classes=10, seed=0).verdict == straight.verdict


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_pixels_outside_the_range_are_refused(bad):
    model = network()
    images, labels = block(model, 2)
    images[0, 0, 0, 0] = bad
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        attack_block(model, images, labels, Threat(eps=0.1), num_classes=10, seed=0)


def test_logits_that_are_not_finite_are_refused():
    model = network()
    with torch.no_grad():
        model[-1].bias[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        attack_block(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), Threat(eps=0.1), num_classes=10, seed=0)


def test_a_model_for_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="7 classes"):
        attack_block(network(10), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), Threat(eps=0.1), num_classes=7, seed=0)


def test_adversarial_image_that_does_not_hold_counts_as_broken_and_is_counted(monkeypatch):
    """No doubt may ever raise the robust accuracy."""
    model = network()
    images, labels = block(model, 4)

    build = pyautoattack_adapter.build

    def cheating(watched, threat, **options):
        attack = build(watched, threat, **options)
        far = (images + 0.3).clamp(0, 1)

        def run(x, y, *, batch_size):
            claimed = y.clone()
            claimed[1] = (y[1] + 1) % 10
            return torch.where(torch.arange(4)[:, None, None, None] == 1, far, x), claimed

        attack.run_standard_evaluation = run
        return attack

    monkeypatch.setattr(pyautoattack_adapter, "build", cheating)
    found = attack_block(model, images, labels, Threat(eps=0.1), num_classes=10, seed=0)
    assert found.unverified == 1
    assert found.verdict[1] != "robust"
    assert found.verdict.count("robust") == 3


def test_what_a_model_keeps_of_its_answers_is_not_overwritten(quick):
    """Square writes -inf into the logits it is given."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = network(), []

        def forward(self, x):
            self.kept.append(self.inner(x))
            return self.kept[-1]

    model = Remembering()
    images, labels = block(model.inner, 3)
    found = attack_block(model, images, labels, Threat(eps=1e-5), num_classes=10, seed=0)
    assert found.parts[-1]["images"] == 3
    assert all(torch.isfinite(logits).all() for logits in model.kept)


def test_the_librarys_warnings_about_a_model_are_kept(quick):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x) + torch.randn(len(x), 10)

    images, labels = block(network(), 6)
    found = attack_block(Noisy(), images, labels, Threat(eps=0.01, attack="apgd-ce"), num_classes=10, seed=0)
    assert any("randomized" in warning for warning in found.warnings)
    calm = attack_block(network(), images, labels, Threat(eps=0.01, attack="apgd-ce"), num_classes=10, seed=0)
    assert calm.warnings == []


def test_progress_names_the_parts_and_grows(quick):
    model = network()
    images, labels = block(model, 4)
    seen = []
    attack_block(
        model,
        images,
        labels,
        Threat(eps=1e-4),
        num_classes=10,
        seed=0,
        progress=lambda name, share: seen.append((name, share)),
    )
    assert {"APGD-CE", "APGD-T", "FAB-T", "Square"} <= {name for name, _ in seen}
    shares = [share for name, share in seen if name != "clean"]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
