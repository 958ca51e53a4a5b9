"""Data sets: from images to batches.

`sources` finds the images of a data set, `encode` compresses them, `beton_writer` stores them in one file per split,
and `stage` does all three as the `encode` stage.

`loader` reads such a file. Which samples make up a batch (`sampler`), where they are cropped (`crop`) and how they are
augmented (`augment`) are pure functions of the seed, the epoch and the sample. So threads, processes, restarts and the
engine (`native_engine` or `ffcv_engine`) never change a batch.
"""
