"""The code of a made-up evaluation attack: it inverts the image as far as the radius allows. See test_extending.py."""

from components.evaluate.attack import AttackResult
from components.threats import ATTACKS

LIBRARY = "made-up 1.0"


def refuse_impossible(threat, *, num_classes, resolution):
    """Every threat can be measured."""


def targets(threat, num_classes):
    return {}


def targets_note(threat, num_classes):
    return ""


def run(model, images, labels, threat, *, num_classes, seed, monitor):
    (part,) = ATTACKS[threat.attack].parts
    adversarial, prediction = images.clone(), model(images).argmax(1)
    rows = (prediction == labels).nonzero().flatten()
    invert = monitor.monitored(part, lambda x, y: x + (1 - 2 * x).clamp(-threat.eps, threat.eps))
    moved = invert(images[rows], labels[rows])
    classes = model(moved).argmax(1)
    broken = classes != labels[rows]
    adversarial[rows[broken]] = moved[broken]
    prediction[rows[broken]] = classes[broken]
    return AttackResult(adversarial, prediction)
