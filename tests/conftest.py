"""A dataset folder of rendered flowers, and commands run as a user runs them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock
from forked import ForkServer

# One thread each: the tests' networks are tiny, and threads that wait for each other cost more than they do. Set before
# anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where a shell started pytest in the background, Ctrl-C is ignored, and would be by the commands that the tests stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
BENCHMARK = "../benchmarks/benchmark.py"  # as run_tool takes it
# A network a sixteenth the size, for tests that train many times and ask nothing of weights from elsewhere.
NARROW = ("model.backbone.base_channels=16", "model.backbone.stem_channels=16", "model.head.in_channels=128")
PHOTOS = 10  # a class: 8 to train on, 2 to validate
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no Chromium for the tests of the pages: apt-get install chromium, or put google-chrome on the PATH"
# Without a sandbox it runs as root too; the rest keeps it from talking to its maker.
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"


@functools.cache
def fork_server() -> ForkServer:
    """The one of this pytest process, started by its first command."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def run_tool(*arguments: object, cwd: Path, launcher: tuple[str, ...] = (), **environment: str):
    """Run ``tools/<first argument>`` as a process in ``cwd`` and return it, finished, with its output as text.

    Where that makes no difference it is spared the import of the libraries, see ``forked.py``.
    """
    tool, *rest = map(str, arguments)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment}
    command = [str(ROOT / "tools" / tool), *rest]
    if not (launcher or environment):
        return fork_server().run(command, cwd, env)
    command = [sys.executable, *launcher, *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=500)
        except BaseException:  # a hung command takes its own children with it; torchrun's need its help to be found
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_on_terminal(*arguments: object, cwd: Path, columns: int = 120, **environment: str) -> tuple[int, str]:
    """Run ``tools/<first argument>`` as ``run_tool`` does, but on a terminal; return its exit code and what it drew."""
    import fcntl
    import pty
    import struct
    import termios

    tool, *rest = map(str, arguments)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **environment}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, str(ROOT / "tools" / tool), *rest]
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, **ends) as process:
        os.close(theirs)
        drawn = b""
        try:
            with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
                while more := os.read(ours, 1 << 16):
                    drawn += more
            process.wait(timeout=60)
        finally:
            os.close(ours)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, drawn.decode()


@pytest.fixture(scope="session", autouse=True)
def decoded_photos(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the cache of decoded photos in the tests' own folder."""
    os.environ["MMFLOWERS_CACHE"] = str(tmp_path_factory.mktemp("decoded"))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable], Path]:
    """Gives the folder of a name, filled by ``make(folder)`` in the first of pytest's processes that asks for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def dataset(made_once) -> Path:
    """A dataset folder: 10 rendered photos of each of the five flowers, prepared by the command. Not to be changed."""

    def make(folder: Path) -> None:
        made = run_tool("prepare_flowers.py", "--rendered", PHOTOS, "--out", "flower_dataset", cwd=folder)
        assert made.returncode == 0, made.stderr

    return made_once("data", make) / "flower_dataset"


@pytest.fixture(scope="session")
def tiny_config(made_once) -> Path:
    """ResNet-18's config made small enough for a test: 48 px, batches of 8, two epochs, no loader processes."""
    text = f"""\
_base_ = {str(ROOT / "configs" / "resnet18_flowers.py")!r}
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=48),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=48, edge='short'),
    dict(type='CenterCrop', crop_size=48),
    dict(type='PackInputs'),
]
small = dict(batch_size=8, num_workers=0)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline), **small)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline), **small)
test_dataloader = val_dataloader
# A rate that moves with every step, so that a resume that loses its place shows.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=2, T_max=1, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2)
# A sixteenth of ResNet-18's weights: what the tests ask of it doesn't depend on its width.
model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(in_channels=128))
"""
    return made_once("configs", lambda folder: (folder / "tiny.py").write_text(text, encoding="utf-8")) / "tiny.py"


@pytest.fixture(scope="session")
def trained(dataset: Path, tiny_config: Path, made_once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a finished two-epoch training, in ``<here>/work_dirs/tiny``; a copy for each pytest process."""

    def make(folder: Path) -> None:
        result = run_tool("train.py", tiny_config, "--data", dataset, "--weights", "none", cwd=folder)
        assert result.returncode == 0, result.stderr

    here = tmp_path_factory.mktemp("trained") / "here"
    shutil.copytree(made_once("training", make), here)
    return here / "work_dirs" / "tiny"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The machine's Chromium, headless, driven by Playwright, with a camera that shows a test picture."""
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield opened
        opened.close()


def pytest_terminal_summary(terminalreporter) -> None:
    """Say once how to get what the skipped tests of the pages lack; pytest alone says only how many were skipped."""
    if any(NO_BROWSER in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.write_line(f"skipped: {NO_BROWSER}")
