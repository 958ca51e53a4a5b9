"""`python -m components.report --spec spec.json`: runs one report stage."""

from components.report.stage import run
from components.store.execute import main

if __name__ == "__main__":
    main(run)
