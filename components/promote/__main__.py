"""`python -m components.promote --spec spec.json`: runs one stage."""

from components.promote.stage import run
from components.store.execute import main

if __name__ == "__main__":
    main(run)
