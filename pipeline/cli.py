"""The `robustrain` command. Heavy modules are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

try:
    from components.errors import EXIT_STATUS, UserError
except ImportError:
    import components

    print(
        f"error: {components.__file__} is imported instead of the package `components` of this program. "
        "rename it, or remove its folder from PYTHONPATH.",
        file=sys.stderr,
    )
    sys.exit(2)
from components.process import LOG_LEVEL_VARIABLE, set_up_logging, stage_cores
from pipeline.run_command import check_machine, make_console, run_and_show, run_with_display, show_results

if TYPE_CHECKING:
    from pipeline.local import Outcome
    from pipeline.recipe import Recipe

app = typer.Typer(
    name="robustrain",
    help="Train adversarially robust image classifiers and measure their robustness with AutoAttack. "
    "The same pipeline runs on this machine and on a Kubeflow cluster.",
    epilog="Begin with: robustrain run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a recipe's name (`robustrain recipes`) or a YAML file")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override one value, e.g. --set adversarial.epochs=50; repeatable"),
]
Again = Annotated[
    list[str] | None,
    typer.Option("--again", metavar="STAGE", help="run this stage even if its finished run can be reused; repeatable"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]
WhichRun = Annotated[
    str, typer.Option("--run", metavar="ID", help="a pipeline run's id or its beginning; default: the newest")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"robustrain {version('robustrain')}")
        raise typer.Exit


@app.callback()
def set_up(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="log more; -vv logs every detail")
    ] = 0,
) -> None:
    """Sets the log level of this process and of the stages that it starts."""
    if verbose:
        os.environ[LOG_LEVEL_VARIABLE] = "debug" if verbose > 1 else "info"
    set_up_logging(default="warning")
    stage_cores()  # refuses a wrong ROBUSTRAIN_CORES before anything starts


@app.command(epilog="Example: robustrain run quickstart --set adversarial.epochs=8")
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    again: Again = None,
    on: Annotated[str, typer.Option("--on", help="`here` (this machine) or `kubeflow`")] = "here",
    wait: Annotated[bool, typer.Option(help="on kubeflow: wait until the run has ended")] = True,
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", min=0, help="here: stages at the same time; 0: two, or one if they share a GPU"),
    ] = 0,
    runner: Annotated[
        str, typer.Option("--runner", help="here: `local`, or `kfp` for KFP's local runner, one step after the other")
    ] = "local",
) -> None:
    """Run a recipe.

    Finished stages are reused, interrupted ones continued, all others run.
    """
    chosen = _load(recipe, overrides, again)
    if on == "kubeflow" and runner != "local":
        raise UserError("has no effect on a cluster", where="--runner", value=runner, remedy="leave it out")
    if on == "kubeflow":
        from pipeline.kubeflow import run_on_kubeflow

        run_on_kubeflow(chosen, wait, tuple(again or ()), jobs)
    elif on == "here":
        run_and_show(chosen, tuple(again or ()), jobs, runner)
    else:
        raise UserError("unknown target", where="--on", value=on, remedy="use `here` or `kubeflow`")


@app.command(epilog="Example: robustrain plan quickstart --set adversarial.epochs=8")
def plan(recipe: RecipeName, overrides: Overrides = None, again: Again = None, as_json: AsJson = False) -> None:
    """Show what `run` would do with each stage, and why.

    Runs and changes nothing. The digest of a folder of images is cached in the home, so that the images are read once.
    """
    from components.store.settings import StorageSettings
    from pipeline.plan import plan as planned

    stages = planned(_load(recipe, overrides, again), StorageSettings.from_environment(), tuple(again or ()))
    if as_json:
        _print_json([stage.as_dict() for stage in stages])
        return
    from rich.table import Table

    table = Table("stage", "kind", "would", "fingerprint", "last took", "why", box=None, pad_edge=False)
    for stage in stages:
        took = f"{stage.seconds:.0f} s" if stage.seconds is not None else "unknown"
        table.add_row(stage.name, stage.kind, stage.action, stage.fingerprint[:10], took, stage.why)
    make_console().print(table)


@app.command(name="compile", epilog="Example: robustrain compile quickstart -o pipeline.yaml")
def compile_(
    recipe: RecipeName,
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write")] = Path("pipeline.yaml"),
    overrides: Overrides = None,
    image: Annotated[str, typer.Option(help="container image of the steps; default: ROBUSTRAIN_PIPELINE_IMAGE")] = "",
) -> None:
    """Write a recipe as a Kubeflow pipeline. Equal recipes give equal bytes. Only an earlier pipeline is replaced."""
    chosen = _load(recipe, overrides)
    from pipeline import graph

    named = image or os.environ.get("ROBUSTRAIN_PIPELINE_IMAGE") or graph.IMAGE
    print(graph.compile_to(chosen, output, named))


@app.command(epilog="Example: robustrain results --json")
def results(
    run_id: WhichRun = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV, with the fields of the JSON as columns")] = False,
) -> None:
    """Show the robust accuracies of a run with their conditions."""
    from components.store.settings import StorageSettings
    from pipeline.results import read

    if as_json and as_csv:
        raise UserError("the two forms exclude each other", where="--csv", remedy="leave out --json or --csv")
    found = read(StorageSettings.from_environment(), run_id)
    if as_json or as_csv:
        print(found.csv() if as_csv else json.dumps(found.plain(), indent=1), end="" if as_csv else "\n")
        print(found.notice(), end="\n" if found.notice() else "", file=sys.stderr)
        return
    if found.rows:
        show_results(found.rows, found.worst_case, make_console())
    if notice := found.notice():
        print(notice)
    if found.report:
        print(f"report: {found.report}")


@app.command(epilog="Example: robustrain runs --limit 5")
def runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many of the newest")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest runs of recipes: id, recipe, state and start.

    `results --run ID` and `report --run ID` take an id or its beginning.
    """
    from datetime import datetime

    from components.store.settings import StorageSettings
    from pipeline.results import list_runs

    found = list_runs(StorageSettings.from_environment(), limit)
    if as_json:
        _print_json(found)
        return
    width = max(len(run["name"]) for run in found)
    for run in found:
        start = datetime.fromtimestamp(run["start"] / 1000).astimezone()
        print(f"{run['run_id'][:8]}  {run['name']:<{width}}  {run['state']:<8}  {start:%Y-%m-%d %H:%M}")


@app.command(epilog="Example: robustrain report -o report.html")
def report(
    run_id: WhichRun = "",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="copy the page to this file")] = None,
) -> None:
    """Print the path of a run's HTML report, or copy it. Only an earlier report is replaced by the copy."""
    from components.store.settings import StorageSettings
    from pipeline.results import read

    found = read(StorageSettings.from_environment(), run_id)
    if not found.report:
        raise found.no_report()
    if output is None:
        print(found.report)
        return
    from components.files import write_output
    from components.report.page import MARK

    print(write_output(output, Path(found.report).read_text(encoding="utf-8"), MARK))


@app.command(epilog="Example: robustrain recipes --show quickstart")
def recipes(
    show: Annotated[str, typer.Option("--show", metavar="NAME", help="print this recipe with all its values")] = "",
    as_json: AsJson = False,
) -> None:
    """List the recipes, or print one with all its values."""
    from pipeline.recipe import load, names

    if show:
        from pipeline.citations import annotated

        chosen = load(show)
        print(json.dumps(chosen.resolved(), indent=1) if as_json else annotated(chosen), end="\n" if as_json else "")
        return
    known = {name: load(name).head.summary for name in names()}
    if as_json:
        _print_json(known)
        return
    width = max(len(name) for name in known)
    for name, summary in known.items():
        print(f"{name:<{width}}  {summary}")


@app.command(epilog="Example: robustrain experiments steps-small frontier-small")
def experiments(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="recipes of experiments; default: all small ones")
    ] = None,
) -> None:
    """Run the experiments and write one page that links their reports."""
    from components.store.settings import StorageSettings
    from pipeline.experiments import load_all, run_all

    chosen, console = load_all(recipes or ()), make_console()
    check_machine()

    def run(recipe: Recipe) -> Outcome:
        console.print(f"\n{recipe.name}: {recipe.head.summary}", highlight=False)
        return run_with_display(recipe, console)

    page, entries = run_all(chosen, StorageSettings.from_environment(), run)
    for entry in entries:
        if entry.problem:
            print(f"error: {entry.name}: {entry.problem}", file=sys.stderr)
    print(f"\nexperiments:  {page}")
    if any(entry.problem for entry in entries):
        raise typer.Exit(1)


@app.command(epilog="Example: robustrain cancel 3d1f6a2e-8a4b-4f6f-9a0e-0d7f0a1c2b3d")
def cancel(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="id of a run on Kubeflow, as printed by `run`")],
) -> None:
    """End a run on Kubeflow and delete its RayJobs."""
    from pipeline.kubeflow import cancel_on_kubeflow

    cancel_on_kubeflow(run_id)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: what is missing, and how to install it."""
    from components.store.settings import StorageSettings
    from pipeline.doctor import examine

    findings = examine(StorageSettings.from_environment())
    if as_json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        for f in findings:
            print(f"{f.state:<8} {f.what:<14} {f.fact}" + (f". To fix: {f.remedy}" if f.remedy else ""))
    if any(f.state == "error" for f in findings):
        raise typer.Exit(EXIT_STATUS)


def _load(recipe: str, overrides: list[str] | None, again: list[str] | None = None) -> Recipe:
    from components.errors import nearest
    from pipeline.recipe import load

    chosen = load(recipe, overrides or ())
    for name in again or ():
        if name not in chosen.stages:
            hint = nearest(name, chosen.stages)
            raise UserError(
                f"there is no stage of that name{hint}", where="--again", value=name, remedy="see `robustrain plan`"
            )
    return chosen


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def main() -> None:
    """Runs the command line. A `UserError` becomes one line on standard error and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    main()
