"""Writes the tables of settings in README.md and docs/cluster.md from the settings classes.

    python docs/settings_tables.py            write the tables (`make docs`)
    python docs/settings_tables.py --check    exit with status 1 if a table is not up to date

A table stands between `<!-- settings: NAME -->` and `<!-- end of settings -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/cluster.md")
MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end of settings -->)", flags=re.DOTALL)


def rows(name: str) -> list[tuple[str, str, str]]:
    """(variables, description, default) of each setting in one table.

    Args:
        name: `storage` (of every machine), `config_map` (of an installation on a cluster) or `kubeflow` (of a user who
            submits runs).
    """
    from components.launch.rayjob_settings import POD_FIELDS, RayJobSettings
    from components.store.settings import StorageSettings
    from pipeline.kubeflow_client import KubeflowSettings

    variables = {
        "storage": StorageSettings.variables(),
        "config_map": [*StorageSettings.variables("config map"), *RayJobSettings.variables("config map")],
        "kubeflow": KubeflowSettings.variables(),
    }[name]
    return [
        (", ".join(f"`{n}`" for n in variable.names if n not in POD_FIELDS), variable.description, variable.default)
        for variable in variables
    ]


def table(name: str) -> str:
    """One table in Markdown."""
    lines = ["| variable | meaning | default |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows(name))])


def updated(text: str) -> str:
    """A document's text with its tables written anew."""
    return MARKED.sub(lambda found: f"{found[1]}{table(found[2])}\n{found[3]}", text)


def main(arguments: list[str]) -> int:
    """Writes or checks the documents; returns the exit status."""
    stale = [name for name in DOCUMENTS if updated(text := (ROOT / name).read_text()) != text]
    if "--check" in arguments:
        print("".join(f"{name} is not up to date: run make docs\n" for name in stale), end="", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).write_text(updated((ROOT / name).read_text()))
        print(f"written: {name}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
