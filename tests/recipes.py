"""A small recipe that several tests change."""

import yaml

SMALL = """
name: small
seed: 3
stages:
  adversarial: {data: digits, init: pretrain, epochs: 2, warmup_epochs: 1, attack: {eps: 4/255}}
  pretrain: {data: digits, epochs: 2, warmup_epochs: 1}
  digits: {kind: encode, source: digits}
  evaluate: {model: adversarial, threats: [{norm: Linf, eps: 0.1}]}
"""


def small(**stages):
    document = yaml.safe_load(SMALL)
    for name, changes in stages.items():
        document["stages"][name] = {**(document["stages"].get(name) or {}), **changes}
    return document
