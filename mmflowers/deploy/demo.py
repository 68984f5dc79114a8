"""The demo page: photos dropped into a browser, or taken by its camera, answered by a run. Needs gradio."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmflowers.commands import importing
from mmflowers.errors import InputError

if TYPE_CHECKING:
    from mmflowers.deploy.answers import Answering

PORT = 7860
MAX_MEGABYTES = 32  # of a photo; phones and cameras stay below
MAX_PHOTOS = 12  # answered at once
MAX_AGE = 600  # seconds that a file of an upload that came to nothing is kept
CSS = Path(__file__).parent / "templates" / "demo.css"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Liberation Mono", "monospace")
# Whatever gradio or a browser's extension of it would fetch from elsewhere, the browser refuses.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


def require_gradio() -> None:
    """Say how to get gradio where it is missing.

    Raises:
        InputError: It is.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo page needs gradio, which isn't installed", "pip install -e '.[demo]'")


def serve(work_dir: Path, *, data: Path | None, host: str, port: int | None, workers: int) -> None:
    """Serve the page until a signal ends it; its address goes to stdout.

    Args:
        work_dir: Of the run.
        data: Its dataset folder, where the run's config doesn't lead to it.
        host: Address to listen on.
        port: Default the first free one from 7860 on.
        workers: Processes that decode the training photos at the first start.

    Raises:
        InputError: No such run, the port is taken, or ``data`` isn't the run's dataset folder.
    """
    import uvicorn

    with _listen(host, port) as listener, tempfile.TemporaryDirectory(prefix="mmflowers-") as uploads:
        with contextlib.redirect_stdout(sys.stderr):  # mmengine tells stdout of timm's networks
            answering = _open_run(work_dir, data, workers)
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = build_app(answering, work_dir.resolve().name, Path(uploads))
        name = f"[{host}]" if ":" in host else host
        print(f"demo: http://{name}:{listener.getsockname()[1]}", flush=True)
        # Pages hold a connection open: without a limit they would keep the command from ending.
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(settings).run(sockets=[listener])


def build_app(answering: Answering, name: str, uploads: Path) -> Any:
    """The page as an ASGI application that asks for nothing from elsewhere.

    Args:
        answering: Of the run.
        name: The run's.
        uploads: Where gradio puts what is uploaded (``GRADIO_TEMP_DIR``).
    """
    with importing():
        import gradio
        from fastapi import FastAPI

    from mmflowers.deploy.answers import Answer

    def answer_all(paths: list[str] | None) -> tuple[str, None]:
        paths = paths or []
        left = len(paths) - MAX_PHOTOS
        notice = f"{left} more photos were left out: the page takes {MAX_PHOTOS} at once, tools/predict.py any number."
        return show([(Path(path).name, path) for path in paths], notice if left > 0 else "")

    def answer_camera(path: str | None) -> tuple[str, None]:
        return show([("camera", path)] if path else [])

    def look(name: str, path: str) -> Answer:
        try:
            return answering.answer(name, Path(path).read_bytes())
        except FileNotFoundError:  # gradio names files by their content, and another tab's answer has deleted this one
            return Answer(name, reason="it was sent twice at the same time, send it again")

    def show(photos: list[tuple[str, str]], notice: str = "") -> tuple[str, None]:
        # None empties the component: ready for the next photo, and without a link to a file that is gone.
        try:
            answers = [look(name, path) for name, path in photos[:MAX_PHOTOS]]
        finally:
            _sweep(uploads, [path for _, path in photos])
        return _for_gradio(answering.render(answers, notice)), None

    with gradio.Blocks(title=f"{name} · mmflowers", analytics_enabled=False) as page:
        gradio.HTML(_head(answering, name))
        with gradio.Tab("Photos"):
            photos = gradio.File(
                label=f"Up to {MAX_PHOTOS} photos of at most {MAX_MEGABYTES} MB each",
                file_count="multiple",
                height=170,
                elem_id="photos",
            )
        with gradio.Tab("Camera"):
            camera = gradio.Image(
                label="Camera", sources=["webcam"], type="filepath", image_mode=None, height=360, elem_id="camera"
            )
        answers = gradio.HTML(elem_id="answers")
        for component, event, answer in (
            (photos, photos.upload, answer_all),
            (camera, camera.input, answer_camera),
        ):
            event(
                answer,
                component,
                [answers, component],
                concurrency_id="network",  # one photo after the other, whoever asks
                api_visibility="private",
                show_progress_on=answers,
            )
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def restrict(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_MEGABYTES << 20,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gradio.themes.Default(primary_hue="green", neutral_hue="gray", font=FONT, font_mono=MONO),
        css=CSS.read_text(encoding="utf-8"),
    )


def _open_run(work_dir: Path, data: Path | None, workers: int) -> Answering:
    with importing():
        from mmflowers.deploy.answers import Answering, read_confusion
        from mmflowers.deploy.classifier import FlowerClassifier
        from mmflowers.deploy.neighbours import TrainingPhotos, read_training_photos
        from mmflowers.engine.configuration import data_root
        from mmflowers.evaluation.facts import find_dataset

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
    try:
        matrix = read_confusion(work_dir, classifier.classes)
    except InputError as error:
        matrix = error
    return Answering(classifier, photos, matrix)


def _head(answering: Answering, name: str) -> str:
    from markupsafe import Markup

    facts = [f"{len(answering.classifier.classes)} classes"]
    if not isinstance(answering.photos, InputError):
        facts.append(f"{len(answering.photos):,} training photos")
    if not isinstance(answering.matrix, InputError):
        right, total = int(np.trace(answering.matrix)), int(answering.matrix.sum())
        facts.append(f"top-1 {100 * right / total:.2f}\N{NO-BREAK SPACE}% on {total:,} val photos")
    return _for_gradio(Markup('<header class="head"><h1>{}</h1><p>{}</p></header>').format(name, " · ".join(facts)))


def _for_gradio(html: str) -> str:
    """HTML in which gradio finds none of its own templates, ``{{ }}`` and ``${ }``."""
    return str(html).replace("{", "&#123;")  # Markup would escape what replaces


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


def _sweep(uploads: Path, answered: list[str]) -> None:
    """Delete the files that were answered, and what came of uploads that nobody waited for."""
    for path in map(Path, answered):
        path.unlink(missing_ok=True)
    for path in sorted(uploads.rglob("*"), reverse=True):  # a folder after what is in it
        try:
            if time.time() - path.stat().st_mtime > MAX_AGE:
                path.rmdir() if path.is_dir() else path.unlink()
        except OSError:  # a folder that isn't empty, or what another answer has deleted
            continue
