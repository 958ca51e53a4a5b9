"""`python -m components.data --spec spec.json`: runs one stage of this room."""

from components.data.stage import run
from components.store.job import main

if __name__ == "__main__":
    main(run)
