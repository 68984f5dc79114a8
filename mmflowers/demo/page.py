"""The demo page itself, built with gradio behind the gate."""

from __future__ import annotations

from pathlib import Path

import gradio
import numpy as np
from fastapi import FastAPI
from markupsafe import Markup

from mmflowers.demo.answers import Answer, Answering
from mmflowers.demo.gate import Gate
from mmflowers.demo.uploads import MAX_MEGABYTES, MAX_PHOTOS, MEGABYTE, Upload
from mmflowers.utils.errors import InputError

WAITING = 64  # questions that wait for the network; later ones are told to come again
CSS = Path(__file__).parent / "templates" / "demo.css"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Liberation Mono", "monospace")


def build_app(answering: Answering, name: str, *, names: frozenset[str], port: int) -> Gate:
    """Build the page as an ASGI application that asks for nothing from elsewhere.

    Args:
        answering: Of the run.
        name: The run's.
        names: Under which browsers may ask for the page, see ``gate.served_names``.
        port: That it listens on.
    """

    def answer_all(_: object, request: gradio.Request) -> tuple[str, None]:
        left_out = request.state.left_out
        were = "photo was" if left_out == 1 else "photos were"
        notice = f"{left_out} more {were} left out: the page takes {MAX_PHOTOS} at once, tools/predict.py any number."
        return show([(photo.name, photo) for photo in request.state.photos], notice if left_out else "")

    def answer_camera(_: object, request: gradio.Request) -> tuple[str, None]:
        return show([("camera", photo) for photo in request.state.photos])

    def look(name: str, photo: Upload) -> Answer:
        data = photo.take()
        if data is None:
            return Answer(name, reason="it was asked about twice, send it again")
        return answering.answer(name, data)

    def show(photos: list[tuple[str, Upload]], notice: str = "") -> tuple[str, None]:
        answers = [look(name, photo) for name, photo in photos]
        # None empties the component: ready for the next photo, and without a link to one that is gone.
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
        events = [
            event(
                answer,
                component,
                [answers, component],
                concurrency_id="network",  # one photo after the other, whoever asks
                api_visibility="private",
                show_progress_on=answers,
            )["id"]
            for component, event, answer in (
                (photos, photos.upload, answer_all),
                (camera, camera.input, answer_camera),
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


def _head(answering: Answering, name: str) -> str:
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
