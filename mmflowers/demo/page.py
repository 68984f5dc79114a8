"""Build the demo page with gradio, behind the gate."""

from __future__ import annotations

from pathlib import Path

import gradio
import numpy as np
from fastapi import FastAPI
from markupsafe import Markup

from mmflowers.demo.gate import Gate
from mmflowers.demo.results import PhotoClassifier, Result
from mmflowers.demo.uploads import MAX_MEGABYTES, MAX_PHOTOS, MEGABYTE, Upload
from mmflowers.utils.errors import InputError, count

WAITING = 64  # requests in the queue; later ones get an error message
CSS = Path(__file__).parent / "templates" / "demo.css"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Liberation Mono", "monospace")


def build_app(classifier: PhotoClassifier, name: str, *, names: frozenset[str], port: int) -> Gate:
    """Build the page as an ASGI application that loads nothing from other servers.

    Args:
        classifier: Predicts the photos.
        name: Name of the run.
        names: Host names of the page, see ``gate.served_names``.
        port: The port that the server listens on.
    """

    def predict_photos(_: object, request: gradio.Request) -> tuple[str, None]:
        left_out = request.state.left_out
        were = "was" if left_out == 1 else "were"
        notice = f"{count(left_out)} {were} left out: the page takes {MAX_PHOTOS} at once, tools/predict.py any number."
        return show([(photo.name, photo) for photo in request.state.photos], notice if left_out else "")

    def predict_camera(_: object, request: gradio.Request) -> tuple[str, None]:
        return show([("camera", photo) for photo in request.state.photos])

    def predict(name: str, photo: Upload) -> Result:
        data = photo.take()
        if data is None:
            return Result(name, reason="it was requested twice, send it again")
        return classifier.predict(name, data)

    def show(photos: list[tuple[str, Upload]], notice: str = "") -> tuple[str, None]:
        results = [predict(name, photo) for name, photo in photos]
        # None clears the component for the next photo, and removes the link to the deleted one.
        return _for_gradio(classifier.render(results, notice)), None

    with gradio.Blocks(title=f"{name} · mmflowers", analytics_enabled=False) as page:
        gradio.HTML(_head(classifier, name))
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
        results = gradio.HTML(elem_id="results")
        events = [
            event(
                function,
                component,
                [results, component],
                concurrency_id="network",  # one request at a time, of all sessions
                api_visibility="private",
                show_progress_on=results,
            )["id"]
            for component, event, function in (
                (photos, photos.upload, predict_photos),
                (camera, camera.input, predict_camera),
            )
        ]
    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.queue(max_size=WAITING),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_MEGABYTES * MEGABYTE,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gradio.themes.Default(primary_hue="green", neutral_hue="gray", font=FONT, font_mono=MONO),
        css=CSS.read_text(encoding="utf-8"),
    )
    return Gate(app, events, names, port)


def _head(classifier: PhotoClassifier, name: str) -> str:
    parts = [f"{len(classifier.classifier.classes)} classes"]
    if not isinstance(classifier.photos, InputError):
        parts.append(f"{len(classifier.photos):,} training photos")
    if not isinstance(classifier.matrix, InputError):
        correct, total = int(np.trace(classifier.matrix)), int(classifier.matrix.sum())
        parts.append(f"top-1 {100 * correct / total:.2f}\N{NO-BREAK SPACE}% on {total:,} val photos")
    return _for_gradio(Markup('<header class="head"><h1>{}</h1><p>{}</p></header>').format(name, " · ".join(parts)))


def _for_gradio(html: str) -> str:
    """Escape braces, so that gradio finds none of its own templates, ``{{ }}`` and ``${ }``, in the HTML."""
    return str(html).replace("{", "&#123;")  # Markup.replace would escape the replacement
