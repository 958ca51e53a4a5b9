"""`python -m components.evaluate --spec spec.json`: runs one stage."""

from components.evaluate.stage import run
from components.store.job import main

if __name__ == "__main__":
    main(run)
