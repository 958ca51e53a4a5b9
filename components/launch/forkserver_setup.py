"""Imported first by the process that forks a run's stages: ties it to the command that started it.

`multiprocessing`'s forkserver offers no other place for code of ours than the modules it preloads. Elsewhere importing
this module does nothing.
"""

from __future__ import annotations

import os

from components.process import exit_with_parent

FORKSERVER_VARIABLE = "ROBUSTRAIN_FORKSERVER_OF"
"""Process id of the command that starts the forkserver."""


def _set_up(parent: int) -> None:
    # Ctrl-C and a closed terminal signal the whole process group of the command, which ends the stages itself.
    os.setpgid(0, 0)
    # While it imports, the forkserver does not look whether its command lives; the imports can take longer than the
    # ten seconds within which everything has to be gone after the command was killed.
    exit_with_parent(parent)
    os.dup2(2, 1)


if os.environ.get(FORKSERVER_VARIABLE) == str(os.getppid()):
    _set_up(os.getppid())
