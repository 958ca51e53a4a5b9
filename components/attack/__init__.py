"""Adversarial examples for training and for cheap probes: APGD, FGSM, and the balls that they stay in."""
