"""One block of images through one threat: clean predictions, the attack by pyautoattack, verified verdicts.

A verdict is `robust`, `wrong` (misclassified as it is) or the name of the part of the attack that broke the image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from components.errors import UserError
from components.evaluate.config import Threat
from components.evaluate.library import TITLES, build
from components.evaluate.observed import Progress, Watch, Watched
from components.evaluate.surroundings import frozen, undisturbed
from components.evaluate.witness import check

ROBUST, WRONG = "robust", "wrong"


@dataclass(frozen=True)
class BlockVerdict:
    """What became of one block of B images.

    Attributes:
        clean_prediction: (B,) int64, classes of the clean images.
        prediction: (B,) int64, classes under attack; the clean ones where the image is robust or wrong.
        verdict: B words: `robust`, `wrong`, or the part that broke the image (`APGD-CE`, ...).
        distance: (B,) float64, norm of the perturbation of a broken image, else 0.
        adversarial: (B, C, H, W) float32, the clean image where it was not broken.
        unverified: broken images whose witness failed the second check; they count as broken all the same, so that
            no doubt ever raises the robust accuracy.
        narrow: broken images with a logit gap below 1e-5.
        parts: for each part of the attack its name, images given, images broken, seconds.
        warnings: what the library said about the model (randomised, dynamic, zero gradients, ...).
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
    """Attacks one block, as one batch of the library.

    Args:
        model: takes float32 (B, C, H, W) in [0, 1] and gives logits (B, num_classes); on the device to use.
        images: float32 in [0, 1], any memory layout.
        labels: int64 (B,).
        seed: of the attack; with the block's composition it settles every random draw.

    Returns:
        Verdicts on the CPU. The model's modes, gradients and the process's random state are as before.

    Raises:
        UserError: images outside [0, 1], or logits that are not finite or not `num_classes` wide.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x, y = _checked_input(images).to(device), labels.to(device, torch.int64)
    watch, start = Watch(threat.attack, x, progress), time.monotonic()
    with frozen(model), undisturbed() as warnings:
        watched = Watched(model, watch.called)
        clean = _clean_predictions(watched, x, num_classes)
        library = build(watched, threat, num_classes=num_classes, seed=seed, device=device)
        watch.attach(library)
        adversarial, claimed = library.run_standard_evaluation(x, y, batch_size=len(x))
        checked = check(watched, x, adversarial, y, norm=threat.norm, eps=threat.eps)
    # The library's answer is the clean class where it failed, so a class other than the label claims a broken image.
    right, broken = (clean == y).cpu(), ((claimed != y) & (clean == y)).cpu()
    watch.settle((right & ~broken).tolist())
    return BlockVerdict(
        clean_prediction=clean.cpu(),
        prediction=torch.where(broken, claimed.cpu(), clean.cpu()),
        verdict=_words(right & ~broken, watch),
        distance=torch.where(broken, checked.distance, 0.0),
        adversarial=torch.where(broken[:, None, None, None], adversarial.cpu(), x.cpu()),
        unverified=int((broken & ~checked.holds).sum()),
        narrow=int((broken & checked.narrow).sum()),
        seconds=time.monotonic() - start,
        parts=[
            {"attack": TITLES[p.name], "images": len(p.rows), "broken": len(p.broken), "seconds": round(p.seconds, 3)}
            for p in watch.parts
        ],
        warnings=list(warnings),
    )


def _words(robust: Tensor, watch: Watch) -> list[str]:
    words = [ROBUST if survives else WRONG for survives in robust.tolist()]
    for part in watch.parts:
        for row in part.broken:
            words[row] = TITLES[part.name]
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
            f"the model gives answers of shape {tuple(logits.shape)[1:]} for {num_classes} classes",
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
