"""Adversarial examples for training and for validation during training: APGD, FGSM, and projections onto balls."""
