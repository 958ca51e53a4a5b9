"""What `run --on kubeflow` and `cancel` do: compile, start, follow and end a run on a cluster, and say how it went.

As light to import as `pipeline.cli` itself: everything heavy is imported inside the functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from components.errors import UserError

if TYPE_CHECKING:
    from pipeline.cluster_settings import ClusterSettings
    from pipeline.recipe import Recipe


def run_on_kubeflow(recipe: Recipe, wait: bool, again: tuple[str, ...] = (), jobs: int = 0) -> None:
    """Compiles a recipe, starts it on the cluster and, with `wait`, follows it to its end.

    Raises:
        UserError: an option that only means something on this machine; the cluster is out of reach or refuses.
        typer.Exit: the run failed (1), or Ctrl-C ended the following (130).
    """
    import tempfile

    from pipeline import cluster, graph

    _refuse("--again", again, "run the stage on this machine, or change one of its fields")
    _refuse("--jobs", jobs, "leave it out: Kubeflow starts every stage whose parents are done")
    settings = cluster.ClusterSettings.from_environment()
    with tempfile.TemporaryDirectory() as folder:
        package = graph.compile_to(recipe, Path(folder) / "pipeline.yaml", settings.image or graph.IMAGE)
        run_id = cluster.submit(
            package, pipeline_name=f"robustrain-{recipe.name}", run_name=recipe.name, parameters={}, settings=settings
        )
    print(f"submitted: run {run_id}\npage:      {settings.run_url(run_id)}", flush=True)
    if wait:
        _follow(run_id, settings)


def cancel_on_kubeflow(run_id: str) -> None:
    """Ends a run on the cluster and deletes its RayJobs, and says which.

    Raises:
        UserError: the cluster is out of reach or refuses.
    """
    from pipeline import cluster

    jobs = cluster.cancel(run_id, settings=cluster.ClusterSettings.from_environment())
    print(f"cancelled: run {run_id}")
    print(f"deleted:   {', '.join(f'RayJob {name}' for name in jobs) or 'no RayJob was left'}")


def _follow(run_id: str, settings: ClusterSettings) -> None:
    from pipeline import cluster

    try:
        cluster.wait(run_id, settings=settings)
    except cluster.RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"no longer followed; run {run_id} goes on. To end it: robustrain cancel {run_id}")
        raise typer.Exit(130) from None


def _refuse(option: str, value: object, remedy: str) -> None:
    if value:
        raise UserError("means nothing on a cluster", where=option, value=value, remedy=remedy)
