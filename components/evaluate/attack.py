"""Attacks one block of images under one threat: clean predictions, the attack, verified verdicts.

A verdict is `robust`, `wrong` (misclassified without an attack) or the title of the part of the attack that broke the
image. The code of an attack is a module as `AttackModule` describes it; `components.threats.ATTACKS` names it.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from components.errors import UserError
from components.evaluate.attack_monitor import AttackMonitor, MonitoredModel, Progress
from components.evaluate.config import Threat
from components.result_rows import ROBUST, WRONG
from components.threats import ATTACKS, Norm

NORM_SLACK, RANGE_SLACK, NARROW_MARGIN = 1e-5, 1e-6, 1e-5


@dataclass(frozen=True)
class AttackResult:
    """What an attack returns for a block of B images; nothing of it is believed without a check.

    Attributes:
        adversarial: (B, C, H, W) float32; the clean image if the attack failed.
        prediction: (B,) int64, the class of the adversarial image; that of the clean image if the attack failed.
        warnings: of the attack, about the model (randomised, dynamic, zero gradients, ...).
    """

    adversarial: Tensor
    prediction: Tensor
    warnings: list[str] = field(default_factory=list)


class AttackModule(Protocol):
    """The code of an attack: a module with these names, see `components.threats.Attack.module`."""

    LIBRARY: str
    """Library and version, as recorded with every result."""

    def refuse_impossible(self, threat: Threat, *, num_classes: int, resolution: int) -> None:
        """Raises a `UserError` for a threat that the attack cannot measure, before any work."""
        ...

    def targets(self, threat: Threat, num_classes: int) -> dict[str, int]:
        """Number of target classes of each targeted part."""
        ...

    def targets_note(self, threat: Threat, num_classes: int) -> str:
        """A sentence if fewer targets than the standard number are used; else empty."""
        ...

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        *,
        num_classes: int,
        seed: int,
        monitor: AttackMonitor,
    ) -> AttackResult:
        """Attacks a block.

        Args:
            model: in eval mode, parameters without gradients; gives fp32 logits.
            images: (B, C, H, W) float32 in [0, 1], labels (B,) int64; on one device.
            seed: with the block's composition it must determine every random draw.
            monitor: every part has to run as `monitor.monitored(part, perturb)`.
        """
        ...


def attack_module(key: str) -> AttackModule:
    """The code of the attack with this key, imported now."""
    return cast(AttackModule, importlib.import_module(ATTACKS[key].module))


@dataclass(frozen=True)
class BlockVerdict:
    """The result of one block of B images.

    Attributes:
        clean_prediction: (B,) int64, classes of the clean images.
        prediction: (B,) int64, classes under attack; the clean ones where the image is robust or wrong.
        verdict: B words: `robust`, `wrong`, or the part that broke the image (`APGD-CE`, ...).
        distance: (B,) float64, norm of the perturbation of a broken image, else 0.
        adversarial: (B, C, H, W) float32, the clean image where it was not broken.
        unverified: broken images whose adversarial image failed the second check; they count as broken, so that no
            doubt ever raises the robust accuracy.
        narrow: broken images with a logit gap below 1e-5.
        parts: for each part of the attack its title, images received, images broken, seconds.
        warnings: of the attack's library, about the model.
    """

    clean_prediction: Tensor
    prediction: Tensor
    verdict: list[str]
    distance: Tensor
    adversarial: Tensor
    unverified: int = 0
    narrow: int = 0
    seconds: float = 0.0
    parts: list[dict[str, object]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def attack_block(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    num_classes: int,
    seed: int,
    progress: Progress | None = None,
) -> BlockVerdict:
    """Attacks one block.

    Args:
        model: takes float32 (B, C, H, W) in [0, 1] and gives logits (B, num_classes); on the device to use.
        images: float32 in [0, 1], any memory layout.
        labels: int64 (B,).
        seed: of the attack; with the block's composition it determines every random draw.

    Returns:
        Verdicts on the CPU. The model's modes, gradients and the process's random state are as before.

    Raises:
        UserError: images outside [0, 1], or logits that are not finite or not `num_classes` wide.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x, y = _checked_input(images).to(device), labels.to(device, torch.int64)
    monitor, start = AttackMonitor(ATTACKS[threat.attack].parts, x, progress), time.monotonic()
    attack = attack_module(threat.attack)
    with frozen(model), _full_precision(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        monitored = MonitoredModel(model, monitor.called)
        clean = _clean_predictions(monitored, x, num_classes)
        found = attack.run(monitored, x, y, threat, num_classes=num_classes, seed=seed, monitor=monitor)
        checked = verify_adversarial(monitored, x, found.adversarial, y, norm=threat.norm, eps=threat.eps)
    # The attack's answer is the clean class where it failed, so a class other than the label claims a broken image.
    right, broken = (clean == y).cpu(), ((found.prediction != y) & (clean == y)).cpu()
    monitor.assign_broken((right & ~broken).tolist())
    return BlockVerdict(
        clean_prediction=clean.cpu(),
        prediction=torch.where(broken, found.prediction.cpu(), clean.cpu()),
        verdict=_words(right & ~broken, monitor),
        distance=torch.where(broken, checked.distance, 0.0),
        adversarial=torch.where(broken[:, None, None, None], found.adversarial.cpu(), x.cpu()),
        unverified=int((broken & ~checked.holds).sum()),
        narrow=int((broken & checked.narrow).sum()),
        seconds=time.monotonic() - start,
        parts=_part_rows(monitor),
        warnings=found.warnings,
    )


def _part_rows(monitor: AttackMonitor) -> list[dict[str, object]]:
    return [
        {"attack": r.part.title, "images": len(r.rows), "broken": len(r.broken), "seconds": round(r.seconds, 3)}
        for r in monitor.records
    ]


def _words(robust: Tensor, monitor: AttackMonitor) -> list[str]:
    words = [ROBUST if survives else WRONG for survives in robust.tolist()]
    for record in monitor.records:
        for row in record.broken:
            words[row] = record.part.title
    return words


def _checked_input(images: Tensor) -> Tensor:
    # The library clamps silently, which turns pixels outside the range into perturbation beyond eps.
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            "images to attack must lie in [0, 1]; the normaliser belongs inside the model",
            where="images",
            value=(low, high),
            remedy="give raw pixels divided by 255",
        )
    return images.detach().to(torch.float32).contiguous()


def _clean_predictions(model: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    with torch.no_grad():
        logits = model(images)
    if logits.shape != (len(images), num_classes):
        raise UserError(
            f"the model's logits have the shape {tuple(logits.shape)[1:]} for {num_classes} classes",
            where="model",
            remedy="evaluate it on the data set it was trained on",
        )
    if not torch.isfinite(logits).all():
        raise UserError(
            "the model's logits are not finite, so no attack on it means anything",
            where="model",
            remedy="look at the training stage's history; its weights have probably diverged",
        )
    return logits.argmax(dim=1)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with parameters that want no gradient; modes and flags are restored afterwards.

    Without this FAB's `.backward()` fills every `.grad` and takes 1.6 times as long.
    """
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        yield model.eval().requires_grad_(False)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        for name, module in model.named_modules():
            module.training = modes[name]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Every multiplication in fp32: no TF32, no autocast."""
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]


@dataclass(frozen=True)
class Verification:
    """The second check of B adversarial images; all tensors (B,) on the CPU.

    Attributes:
        holds: misclassified, inside the ball, inside the range.
        distance: norm of the perturbation, float64.
        prediction: class of the adversarial image.
        narrow: misclassified by a logit gap below 1e-5, which other hardware may round the other way.
    """

    holds: Tensor
    distance: Tensor
    prediction: Tensor
    narrow: Tensor


def verify_adversarial(
    model: nn.Module, clean: Tensor, adversarial: Tensor, labels: Tensor, *, norm: Norm, eps: float
) -> Verification:
    """Checks adversarial images (B, C, H, W) against their clean ones and labels (B,), independently of the attack.

    An adversarial image holds if the model, in fp32, gives it another class than the label, its perturbation's norm (in
    float64) is at most eps (1 + 1e-5), and its pixels are in [0, 1] within 1e-6. The library checks the class only.
    """
    with torch.no_grad():
        logits = model(adversarial).double()
    prediction = logits.argmax(dim=1)
    far = distances(clean, adversarial, norm)
    pixels = adversarial.double().flatten(1)
    in_range = (pixels.amin(1) >= -RANGE_SLACK) & (pixels.amax(1) <= 1 + RANGE_SLACK)
    wrong = (prediction != labels) & torch.isfinite(logits).all(dim=1)
    holds = wrong & in_range & (far <= eps * (1 + NORM_SLACK))
    own = logits.gather(1, labels[:, None]).squeeze(1)
    narrow = wrong & (logits.amax(1) - own < NARROW_MARGIN)
    return Verification(holds.cpu(), far.cpu(), prediction.cpu(), narrow.cpu())


def distances(clean: Tensor, adversarial: Tensor, norm: Norm) -> Tensor:
    """Norm of each perturbation in float64: (B,)."""
    delta = (adversarial.double() - clean.double()).flatten(1)
    if norm == "Linf":
        return delta.abs().amax(dim=1)
    return delta.abs().sum(dim=1) if norm == "L1" else delta.square().sum(dim=1).sqrt()
