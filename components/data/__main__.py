"""Runs an `encode` stage: `python -m components.data --spec spec.json`."""

from components.data.stage import run
from components.store.execute import main

if __name__ == "__main__":
    main(run)
