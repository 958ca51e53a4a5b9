"""What the `run` and `experiments` commands do: run a recipe with live lines, and print how it ended.

As light to import as `pipeline.cli` itself: everything heavy is imported inside the functions.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from components.errors import EXIT_STATUS, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from components.result_rows import ResultRow, WorstCaseRow
    from pipeline.local import Outcome
    from pipeline.recipe import Recipe


def run_and_show(recipe: Recipe, again: tuple[str, ...], jobs: int, runner: str = "local") -> None:
    """Runs a recipe on this machine and prints its results.

    Raises:
        UserError: this machine lacks something.
        typer.Exit: a stage failed, or the run was stopped.
    """
    from pipeline.plan import kept_behind

    console = make_console()
    check_machine()
    if kept := kept_behind(recipe, again):
        names = ", ".join(kept)
        note = f"--again: finished stages that depend on it are reused ({names}); name them too to run them again"
        console.print(note, highlight=False, markup=False)
    _conclude(run_with_display(recipe, console, again, jobs, runner), console)


def check_machine() -> None:
    """Checks what a run cannot do without, a part of what `robustrain doctor` checks.

    Raises:
        UserError: this machine lacks it.
    """
    from components.store.settings import StorageSettings
    from pipeline.doctor import lacking

    finding = lacking(StorageSettings.from_environment())
    if finding:
        raise UserError(finding.fact, where=finding.what, remedy=finding.remedy)


def run_with_display(
    recipe: Recipe, console: Console, again: tuple[str, ...] = (), jobs: int = 0, runner: str = "local"
) -> Outcome:
    """Runs a recipe on this machine with its live lines.

    Raises:
        UserError: as `pipeline.plan.check_data` and `pipeline.local.run_here`.
    """
    from components.store.settings import StorageSettings
    from pipeline.display import Display
    from pipeline.local import run_here
    from pipeline.plan import check_data

    check_data(recipe)
    display = Display(recipe, console)
    try:
        with display.shown():
            storage = StorageSettings.from_environment()
            return run_here(recipe, storage, again=again, jobs=jobs, runner=runner, watch=display.update)
    except KeyboardInterrupt:
        console.print("stopped. Start again to go on: complete stages are reused, the interrupted one continues.")
        raise typer.Exit(130) from None


def _conclude(outcome: Outcome, console: Console) -> None:
    """Prints the table, the report's path and the MLflow command; or the cause and the log."""
    from components.store.settings import StorageSettings

    if not outcome.ok:
        _print_cause(outcome)
    if outcome.rows:
        console.print()
        show_results(outcome.rows, outcome.worst_case, console)
    if outcome.report:
        print(f"\nreport:  {outcome.report}")
    store = shlex.quote(StorageSettings.from_environment().tracking_uri)
    print(f"MLflow:  {mlflow_command()} ui --backend-store-uri {store}")


def mlflow_command() -> str:
    """Returns how to call `mlflow`: by its name if the shell finds it, else by its path beside this Python."""
    import shutil

    beside = Path(sys.executable).parent / "mlflow"
    return "mlflow" if shutil.which("mlflow") or not beside.exists() else shlex.quote(str(beside))


def _print_cause(outcome: Outcome) -> NoReturn:
    failed = outcome.failed()
    if failed:
        what, log, user = f"stage {failed['stage']} failed: {failed['error']}", failed["log"], failed.get("user")
    else:
        what, log, user = f"the pipeline stopped before any stage failed: {outcome.cause}", outcome.log, outcome.user
    print(f"error: {what}\nlog: {log}", file=sys.stderr)
    if not failed:
        check_machine()  # a full disk may be the reason and leave no other trace
    raise typer.Exit(EXIT_STATUS if user else 1)


def show_results(rows: Sequence[ResultRow], worst_case: Sequence[WorstCaseRow], console: Console) -> None:
    """Prints results as a table, the worst cases over the norms, and the conditions that hold for all of them."""
    from components.report.terminal import terminal_conditions, terminal_table, terminal_worst_cases

    console.print(terminal_table(rows))
    if (worst := terminal_worst_cases(worst_case)) is not None:
        console.print(worst)
    for line in terminal_conditions(rows):
        console.print(line, highlight=False, markup=False)


def make_console() -> Console:
    """Returns a console of the terminal's width, or of 120 columns if the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)
