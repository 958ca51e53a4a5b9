"""`python -m components.data --spec spec.json`: runs one stage of this room."""

from components.data.stage import run
from components.store.execute import main

if __name__ == "__main__":
    main(run)
