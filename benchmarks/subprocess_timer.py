"""Times pieces of work in a second process, which keeps freed memory.

The treatment of freed memory by glibc is a setting of a whole process that cannot be undone. Work with and without it
is therefore timed in two processes; only one of them works at any time, and each times its own pieces.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

from benchmarks.timing import Work, timed
from components.process import keep_freed_memory

Build = Callable[[], Mapping[str, Work]]
"""Makes the pieces of work, in the process that runs them; a module's function, or a partial of one."""


@contextmanager
def subprocess_timer(build: Build) -> Iterator[dict[str, Callable[[], float]]]:
    """Yields a function per piece made by `build`, which runs it once in the other process and returns the seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, build), daemon=True)
    process.start()
    theirs.close()
    try:
        yield {name: lambda name=name: _ask(ours, name) for name in ours.recv()}
    finally:
        ours.close()
        process.join(30)


def _ask(pipe: Connection, name: str) -> float:
    pipe.send(name)
    return pipe.recv()


def _serve(pipe: Connection, build: Build) -> None:
    keep_freed_memory()
    works = build()
    pipe.send(list(works))
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        pipe.send(timed(works[name]))
