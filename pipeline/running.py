"""What the `run` and `experiments` commands do: run with live lines, and tell how it ended.

As light to import as `pipeline.cli` itself: everything heavy is imported inside the functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from components.errors import EXIT_STATUS, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from components.result_rows import ResultRow, WorstCaseRow
    from pipeline.local import Outcome
    from pipeline.recipe import Recipe


def run_here_and_tell(recipe: Recipe, again: tuple[str, ...], jobs: int) -> None:
    """Runs a recipe on this machine and prints its results.

    Raises:
        UserError: this machine lacks something.
        typer.Exit: a stage failed, or the run was stopped.
    """
    from pipeline.plan import kept_behind

    console = console_of_ours()
    check_machine()
    if kept := kept_behind(recipe, again):
        said = (
            f"--again: what is finished behind it stays as it is ({', '.join(kept)}); name those too to run them again"
        )
        console.print(said, highlight=False, markup=False)
    _conclude(shown(recipe, console, again, jobs), console)


def check_machine() -> None:
    """Raises what a run cannot do without, of all that `robustrain doctor` looks at."""
    from components.store.settings import StorageSettings
    from pipeline.doctor import lacking

    finding = lacking(StorageSettings.from_environment())
    if finding:
        raise UserError(finding.fact, where=finding.what, remedy=finding.remedy)


def shown(recipe: Recipe, console: Console, again: tuple[str, ...] = (), jobs: int = 0) -> Outcome:
    """Runs a recipe here with its live lines."""
    from components.store.settings import StorageSettings
    from pipeline.display import Display
    from pipeline.local import run_here

    display = Display(recipe, console)
    try:
        with display.shown():
            return run_here(recipe, StorageSettings.from_environment(), again=again, jobs=jobs, watch=display.update)
    except KeyboardInterrupt:
        console.print("stopped. Start again to go on: complete stages are reused, the interrupted one continues.")
        raise typer.Exit(130) from None


def _conclude(outcome: Outcome, console: Console) -> None:
    """The table, the report's path and the MLflow command; or the cause and the log."""
    from components.store.settings import StorageSettings

    if not outcome.ok:
        _say_why(outcome)
    if outcome.rows:
        console.print()
        from components.result_rows import ResultRow, WorstCaseRow

        rows = [ResultRow.model_validate(row) for row in outcome.rows]
        show_results(rows, [WorstCaseRow.model_validate(row) for row in outcome.worst_case], console)
    if outcome.report:
        print(f"\nreport:  {outcome.report}")
    print(f"MLflow:  {mlflow_command()} ui --backend-store-uri {StorageSettings.from_environment().tracking_uri}")


def mlflow_command() -> str:
    """How `mlflow` is called from here: by its name where the shell finds it, else by its path beside this Python."""
    import shlex
    import shutil

    beside = Path(sys.executable).parent / "mlflow"
    return "mlflow" if shutil.which("mlflow") or not beside.exists() else shlex.quote(str(beside))


def _say_why(outcome: Outcome) -> NoReturn:
    failed = outcome.failed()
    if failed:
        said, log, user = f"stage {failed['stage']} failed: {failed['error']}", failed["log"], failed.get("user")
    else:
        said, log, user = f"the pipeline stopped before any stage failed: {outcome.cause()}", outcome.log, outcome.user
    print(f"error: {said}\nlog: {log}", file=sys.stderr)
    if not failed:
        check_machine()  # a full disk may be the reason and leave no other trace
    raise typer.Exit(EXIT_STATUS if user else 1)


def show_results(rows: list[ResultRow], worst_case: list[WorstCaseRow], console: Console) -> None:
    """Prints results as a table, the worst cases over the norms, and the conditions that hold for all of them."""
    from components.report.terminal import terminal_conditions, terminal_table, terminal_worst_cases

    console.print(terminal_table(rows))
    if (worst := terminal_worst_cases(worst_case)) is not None:
        console.print(worst)
    for line in terminal_conditions(rows):
        console.print(line, highlight=False, markup=False)


def console_of_ours() -> Console:
    """A terminal as wide as it is, or 120 columns where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)
