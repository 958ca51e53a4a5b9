"""`python -m components.train --spec spec.json`: runs one training stage."""

from components.store.execute import main
from components.train.stage import run

if __name__ == "__main__":
    main(run)
