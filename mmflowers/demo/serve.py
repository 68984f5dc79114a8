"""Serve the demo page, which predicts photos that a browser uploads or its camera takes. Needs gradio."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import importing

if TYPE_CHECKING:
    import numpy as np

    from mmflowers.demo.results import PhotoClassifier
    from mmflowers.inference.neighbours import TrainingPhotos

PORT = 7860
M_MMAP_THRESHOLD = -3  # of malloc.h
CONNECTIONS = 200  # simultaneous; a browser tab opens up to six


def require_gradio() -> None:
    """Raise an error if gradio isn't installed.

    Raises:
        InputError: With the command that installs it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo page needs gradio, which isn't installed", "pip install 'mmflowers[demo]'")


def serve(
    work_dir: Path, *, data: Path | None, host: str, port: int | None, workers: int, allow_hosts: Sequence[str] = ()
) -> None:
    """Print the address of the page to stdout and serve it until a signal ends the process.

    Args:
        work_dir: Of the run.
        data: Its dataset folder; default the one in the run's config.
        host: Address to listen on.
        port: Default: the first free one from 7860 on.
        workers: Number of processes that decode the training photos at the first start.
        allow_hosts: Further host names of the page, besides those of the machine.

    Raises:
        InputError: There is no such run, the port is in use, or ``data`` isn't the run's dataset folder.
    """
    with _listen(host, port) as listener, tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # by default gradio's is shared by all users of the machine
        with contextlib.redirect_stdout(sys.stderr):  # mmengine prints on stdout about timm's networks
            classifier = _open_run(work_dir, data, workers)
        with importing():
            import uvicorn

            from mmflowers.demo.gate import served_names
            from mmflowers.demo.page import build_app

        number = listener.getsockname()[1]
        return_freed_memory()
        app = build_app(classifier, work_dir.resolve().name, names=served_names(host, allow_hosts), port=number)
        name = f"[{host}]" if ":" in host else host
        print(f"demo: http://{name}:{number}", flush=True)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,  # open pages keep a connection, which would delay the end of the command
        )
        uvicorn.Server(settings).run(sockets=[listener])


def return_freed_memory() -> None:
    """Make the process return large blocks of memory to the system as soon as they are freed.

    glibc maps blocks above a threshold separately and unmaps them when they are freed; smaller ones stay in the arena
    of a thread. The threshold grows up to 32 MB with the blocks that are freed, unless it is set (M_MMAP_THRESHOLD in
    ``man mallopt``). Other C libraries have no such setting.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _open_run(work_dir: Path, data: Path | None, workers: int) -> PhotoClassifier:
    with importing():
        from mmflowers.demo.results import PhotoClassifier, read_confusion
        from mmflowers.engine.configuration import data_root
        from mmflowers.evaluation.metadata import find_dataset
        from mmflowers.inference.classifier import FlowerClassifier
        from mmflowers.inference.neighbours import read_training_photos

    classifier = FlowerClassifier.from_run(work_dir)
    photos: TrainingPhotos | InputError
    matrix: np.ndarray | InputError
    try:
        root = find_dataset(work_dir, None if data else data_root(classifier.model._config), data)
        photos = read_training_photos(classifier, work_dir, root, workers=workers)
    except InputError as error:
        if data:
            raise
        photos = error
        print(f"note: the page shows no nearest training photos: {error}", file=sys.stderr)
    try:
        matrix = read_confusion(work_dir, classifier.classes)
    except InputError as error:
        matrix = error
        print(f"note: the page shows no confusions: {error}", file=sys.stderr)
    return PhotoClassifier(classifier, photos, matrix)


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port is not None else range(PORT, PORT + 100):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # on Windows it would allow two servers on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error
            if port is None and isinstance(error, (PermissionError, socket.gaierror)):
                break
    raise InputError(f"can't listen on {host}, port {number}: {reason.strerror}", "choose another --port or --host")
