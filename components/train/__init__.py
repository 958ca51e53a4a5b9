"""The five training stages (pretrain, convstem, adversarial, radius, transfer): one loop with five configurations.

`config` is what a recipe can set, `stage` the entry, `loop` the training loop, and `train_step` one step of it.
"""
