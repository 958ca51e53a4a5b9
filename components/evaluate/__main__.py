"""`python -m components.evaluate --spec spec.json`: runs one stage."""

from components.evaluate.stage import run
from components.store.execute import main

if __name__ == "__main__":
    main(run)
