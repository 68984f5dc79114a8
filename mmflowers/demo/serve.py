"""The demo page: photos dropped into a browser, or taken by its camera, answered by a run. Needs gradio."""

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

    from mmflowers.demo.answers import Answering
    from mmflowers.inference.neighbours import TrainingPhotos

PORT = 7860
M_MMAP_THRESHOLD = -3  # of malloc.h
CONNECTIONS = 200  # at the same time; a tab takes up to six


def require_gradio() -> None:
    """Say how to get gradio where it is missing.

    Raises:
        InputError: It is.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo page needs gradio, which isn't installed", "pip install 'mmflowers[demo]'")


def serve(
    work_dir: Path, *, data: Path | None, host: str, port: int | None, workers: int, allow_hosts: Sequence[str] = ()
) -> None:
    """Serve the page until a signal ends it; its address goes to stdout.

    Args:
        work_dir: Of the run.
        data: Its dataset folder, where the run's config doesn't lead to it.
        host: Address to listen on.
        port: Default the first free one from 7860 on.
        workers: Processes that decode the training photos at the first start.
        allow_hosts: Names that browsers reach the page by besides the machine's own.

    Raises:
        InputError: No such run, the port is taken, or ``data`` isn't the run's dataset folder.
    """
    with _listen(host, port) as listener, tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio makes it, and shares it with all of the machine by default
        with contextlib.redirect_stdout(sys.stderr):  # mmengine tells stdout of timm's networks
            answering = _open_run(work_dir, data, workers)
        with importing():
            import uvicorn

            from mmflowers.demo.gate import served_names
            from mmflowers.demo.page import build_app

        number = listener.getsockname()[1]
        return_freed_memory()
        app = build_app(answering, work_dir.resolve().name, names=served_names(host, allow_hosts), port=number)
        name = f"[{host}]" if ":" in host else host
        print(f"demo: http://{name}:{number}", flush=True)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,  # pages hold a connection open and would keep the command from ending
        )
        uvicorn.Server(settings).run(sockets=[listener])


def return_freed_memory() -> None:
    """Have the process return large blocks of memory to the system as soon as they are freed.

    glibc maps a block for itself, and unmaps it when it is freed, above a size that grows up to 32 MB with the blocks
    that are freed; smaller ones stay in a reserve of each thread (M_MMAP_THRESHOLD in ``man mallopt``). A size that is
    set doesn't grow. Other C libraries have nothing of the kind.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _open_run(work_dir: Path, data: Path | None, workers: int) -> Answering:
    with importing():
        from mmflowers.demo.answers import Answering, read_confusion
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
    return Answering(classifier, photos, matrix)


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port is not None else range(PORT, PORT + 100):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # on Windows it would share the port with another
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
    raise InputError(f"can't listen on {host}, port {number}: {reason.strerror}", "--port or --host names another one")
