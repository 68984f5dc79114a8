"""Commands as processes of their own that needn't import the libraries again.

The tests start a hundred commands, and PyTorch and OpenMMLab's packages take each of them some seconds to import. A
copy (``os.fork``) of a process that has imported these, and nothing of mmflowers, goes on as a fresh one would: in its
own session, folder and environment, from ``__main__`` to Python's own end. Two things it shares with the other copies
that a fresh one wouldn't: the seed of Python's hashes, and what libraries have read at their import. Commands with
variables of their own are therefore started afresh by ``run_tool``, as are those that the pages show.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ("mmpretrain.models", "mmpretrain.evaluation", "mmpretrain.visualization", "matplotlib.pyplot")


class ForkServer:
    """Python with libraries imported, and a copy of it for each command, one at a time.

    Only on Linux: elsewhere the libraries don't bear to be forked, and each command is started afresh.

    Args:
        libraries: Modules to import.
        environment: The server's own, default that of this process.
    """

    def __init__(self, libraries: Sequence[str] = LIBRARIES, environment: Mapping[str, str] | None = None) -> None:
        self._server: subprocess.Popen | None = None
        if sys.platform != "linux":
            return
        command = [sys.executable, __file__, *libraries]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def run(self, command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
        """Run ``python <command>`` and return it, finished, with its output as text."""
        if self._server is None:
            options = dict(cwd=cwd, env=environment, capture_output=True, text=True)
            return subprocess.run([sys.executable, *command], check=False, **options)
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/{name}" for name in ("stdout", "stderr")]
            print(json.dumps([command, str(cwd), environment, files]), file=self._server.stdin, flush=True)
            pid = int(self._server.stdout.readline())
            try:
                code = int(self._server.stdout.readline())
            except BaseException:  # the test's time is up, or Ctrl-C
                os.killpg(pid, signal.SIGKILL)
                self._server.stdout.readline()
                raise
            return subprocess.CompletedProcess(command, code, *(Path(file).read_text() for file in files))

    def close(self) -> None:
        """End it. It ends by itself with the process that it serves."""
        if self._server is not None:
            self._server.communicate()


def serve() -> None:
    """Import what the arguments name; fork for each line of stdin, and say the process and, later, its exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print as they are imported
    for library in sys.argv[1:]:
        importlib.import_module(library)
    gc.freeze()  # or each copy would look through all of it for garbage, and copy its pages for that
    for order in sys.stdin:
        pid = os.fork()
        if pid == 0:
            answers.close()
            become(*json.loads(order))
            return
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def become(command: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    """Go on as ``python <command>`` that was started in ``cwd``."""
    import numpy as np

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate((os.devnull, *files)):
        opened = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0)  # the server's has read ahead
    np.random.seed()  # Python's own does so by itself
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    serve()
