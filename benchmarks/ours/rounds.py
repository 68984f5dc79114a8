"""Compares trainings: several, in rounds, each run a process of its own; what was measured as JSON and as a table."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mmflowers.evaluation.history import TOP1, History, read_history
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.resources import processors
from mmflowers.utils.terminal import progress

ROOT = Path(__file__).parents[2]
LOOK_EVERY, WEIGH_EVERY = 0.1, 0.5  # seconds between two looks at a process, at its memory (a walk over all processes)
PACKAGES = ("torch", "torchvision", "numpy", "PIL", "mmengine", "mmcv", "mmpretrain", "timm", "mmflowers")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")

# A row of the table: what is measured, its name, how it is written.
RATES = (
    ("images_per_second", "training, images/s", "{:,.1f}"),
    ("against_first", "times the first one's", "{:.2f}"),
    ("ceiling_images_per_second", "ceiling: bare loop on one batch, images/s", "{:,.1f}"),
    ("of_ceiling", "training / ceiling", "{:.2f}"),
    ("waiting_share", "share of the time waiting for data", "{:.1%}"),
    ("eval_images_per_second", "validation, images/s", "{:,.1f}"),
    ("syncs_per_iteration", "host syncs an iteration", "{:.1f}"),
    ("seconds_to_first_batch", "process start to first iteration, s", "{:.1f}"),
    ("seconds_to_first_iteration", "process start to first iteration done, s", "{:.1f}"),
    ("host_peak_mb", "peak memory, all processes, MB", "{:,.0f}"),
    ("device_peak_mb", "peak memory of the device, MB", "{:,.0f}"),
)
TIMES = (
    ("seconds_to_accuracy", "process start to {accuracy:g} %, s", "{:.1f}"),
    ("against_first", "times as quick as the first one", "{:.2f}"),
    ("seconds", "process start to its end, s", "{:.1f}"),
    ("best_accuracy", "best val top-1 of each seed, %", "{:.2f}"),
    ("last_accuracy", "last val top-1 of each seed, %", "{:.2f}"),
    ("host_peak_mb", "peak memory, all processes, MB", "{:,.0f}"),
)
EACH = ("best_accuracy", "last_accuracy")  # given for each round in place of a median


class Failed(Exception):
    """A process ended with an error; its text is one line."""


def compare_rates(
    command: Sequence[str],
    trainings: Sequence[str],
    *,
    options: Sequence[str],
    repeats: int,
    threads: int | None = None,
    warmup: int | None = None,
    iterations: int | None = None,
) -> dict:
    """Measure the rates of trainings (see ``measure_rates``) in turn.

    Args:
        command: Takes a task as JSON and writes what ``measure_rates`` returns to the task's ``out``.
        trainings: Each what one types after ``tools/train.py``: a config, or a config and options.
        options: More of the same, for all; a training's own come later and so win.
        repeats: Rounds. Every other one goes through the trainings backwards, so that a drift favours none.
        threads: Of every process (OMP_NUM_THREADS); None: torch's default.
        warmup: See ``measure_rates``.
        iterations: See ``measure_rates``.

    Returns:
        The machine, and for each training all rounds, their medians, and the error that ended it if one did.
    """

    def measure(training: list[str], number: int, folder: Path) -> dict:
        out = folder / "rates.json"
        task = {"training": [*options, *training, "--work-dir", str(folder / "run")], "out": str(out)}
        task |= {"started": time.time(), "warmup": warmup, "iterations": iterations}
        peak = run_watched([*command, json.dumps(task)], folder / "log.txt", threads)
        return json.loads(out.read_text(encoding="utf-8")) | {"host_peak_mb": peak}

    results = _in_rounds(trainings, repeats, measure)
    _against_first(results, "images_per_second", lambda own, first: own / first)
    asked = {"options": [*options], "repeats": repeats, "threads": threads, "warmup": warmup, "iterations": iterations}
    return _with_medians(results, RATES, {"measured": "rates", **asked})


def compare_times(
    command: Sequence[str],
    trainings: Sequence[str],
    accuracy: float,
    *,
    options: Sequence[str],
    repeats: int,
    threads: int | None = None,
) -> dict:
    """Time whole trainings from the start of the process to the first validation of ``accuracy`` and to the end.

    Args:
        command: ``tools/train.py``.
        trainings: As of ``compare_rates``.
        accuracy: Val top-1 in percent.
        options: As of ``compare_rates``.
        repeats: Rounds, with the seeds 0, 1 …
        threads: As of ``compare_rates``.

    Returns:
        As ``compare_rates``. ``seconds_to_accuracy`` is None for a run that didn't come to it, and counts as the
        slowest of all in the median.
    """

    def measure(training: list[str], number: int, folder: Path) -> dict:
        run, reached = folder / "run", None
        line = [*command, *options, *training, "--seed", str(number), "--work-dir", str(run)]
        start = time.perf_counter()

        def look() -> None:
            nonlocal reached
            if reached is None and max(_history(run).scores, default=-math.inf) >= accuracy:
                reached = time.perf_counter() - start

        peak = run_watched(line, folder / "log.txt", threads, look)
        seconds = time.perf_counter() - start
        look()  # what came after the last look
        history = _history(run)
        if not history.scores:
            raise Failed("it ended without a validation")
        return {
            "seed": number,
            "seconds_to_accuracy": reached,
            "seconds": seconds,
            "best_accuracy": max(history.scores),
            "best_epoch": history.best[0],
            "last_accuracy": history.scores[-1],
            "accuracies": history.scores,
            "host_peak_mb": peak,
        }

    results = _in_rounds(trainings, repeats, measure)
    _against_first(results, "seconds_to_accuracy", lambda own, first: first / own)
    asked = {"accuracy": accuracy, "options": [*options], "repeats": repeats, "threads": threads}
    return _with_medians(results, TIMES, {"measured": "times to an accuracy", **asked})


def table(got: dict) -> str:
    """What was compared, as a Markdown table: medians, and least and greatest of the rounds."""
    machine = got["machine"]
    facts = [machine["cpu"], f"{machine['cores']} cores", *machine["cpu_flags"], machine["gpu"] or "no GPU"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{', '.join(facts)}, {machine['memory_gb']:.0f} GB; {versions}; commit {machine['commit'] or 'unknown'}; "
        f"n = {got['repeats']}, median (least–greatest)",
        "",
        "| | " + " | ".join(f"`{result['training']}`" for result in got["results"]) + " |",
        "| --- |" + " --- |" * len(got["results"]),
    ]
    for key, name, form in RATES if got["measured"] == "rates" else TIMES:
        cells = [_cell(result["rounds"], key, form) for result in got["results"]]
        if any(cells):
            lines.append(f"| {name.format(**got)} | {' | '.join(cell or '–' for cell in cells)} |")
    errors = [f"`{result['training']}`: {result['error']}" for result in got["results"] if result["error"]]
    return "\n".join([*lines, *([""] if errors else []), *errors])


def failures(got: dict) -> list[Problem]:
    """The trainings that an error ended."""
    return [Problem(f"{result['training']}: {result['error']}") for result in got["results"] if result["error"]]


def run_watched(
    command: Sequence[str], log: Path, threads: int | None, look: Callable[[], None] = lambda: None
) -> float:
    """Run a command to its end.

    Args:
        command: As one types it.
        log: Takes its stderr.
        threads: OMP_NUM_THREADS for it.
        look: Called ten times a second.

    Returns:
        The most memory resident in it and its children together, in MB; pages that they share count for each.

    Raises:
        Failed: With the first ``error:`` line, else the last line, of its stderr.
    """
    psutil = _psutil()
    env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    peak, weighed = 0, -math.inf
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=env) as own:
        try:
            process = psutil.Process(own.pid)
            while own.poll() is None:
                look()
                if time.monotonic() - weighed >= WEIGH_EVERY:
                    weighed = time.monotonic()
                    with contextlib.suppress(psutil.Error):  # one that has ended meanwhile
                        family = [process, *process.children(recursive=True)]
                        peak = max(peak, sum(member.memory_info().rss for member in family))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    own.wait(LOOK_EVERY)
        except BaseException:
            own.kill()
            raise
    if own.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-1:]
        raise Failed(said[0] if said else f"exit code {own.returncode}")
    return peak / 2**20


def describe_machine() -> dict:
    """Hardware and versions that figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []  # of the first core
    facts = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    flags = [flag for flag in facts.get("flags", "").split() if flag in CPU_FLAGS]
    gpu = torch.cuda.is_available()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": processors(),
        "cpu_flags": flags or [torch.backends.cpu.get_cpu_capability().lower()],
        "memory_gb": _psutil().virtual_memory().total / 2**30,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.import_module(name).__version__ for name in PACKAGES},
        },
        "commit": _commit(),
    }


def _in_rounds(trainings: Sequence[str], repeats: int, measure: Callable[[list[str], int, Path], dict]) -> list[dict]:
    """Measure each training in each round, until an error ends it."""
    results = [{"training": training, "rounds": [], "error": None} for training in trainings]
    order = [(number, result) for number in range(repeats) for result in results[:: -1 if number % 2 else 1]]
    for number, result in progress(order, total=len(order), what="runs"):
        if result["error"] is None:
            with tempfile.TemporaryDirectory(prefix="mmflowers-", ignore_cleanup_errors=True) as folder:
                try:
                    result["rounds"].append(measure(_words(result["training"]), number, Path(folder)))
                except Failed as failed:
                    result["error"] = str(failed)
    return results


def _words(training: str) -> list[str]:
    """A command line's words; a path by itself is one, blanks included."""
    return [training] if Path(training).is_file() else shlex.split(training, posix=os.name != "nt")


def _against_first(results: list[dict], key: str, ratio: Callable[[float, float], float]) -> None:
    """Hold each round's value against that of the first training in the same round, where no round is without one."""
    for result in results[1:]:
        pairs = list(zip(result["rounds"], results[0]["rounds"], strict=False))
        if all(one[key] is not None for pair in pairs for one in pair):
            for own, first in pairs:
                own["against_first"] = ratio(own[key], first[key])


def _with_medians(results: list[dict], rows: Sequence[tuple[str, str, str]], asked: dict) -> dict:
    for result in results:
        spreads = {key: _spread(result["rounds"], key) for key, *_ in rows}
        result["median"] = {key: spread[0] for key, spread in spreads.items() if spread and spread[0] < math.inf}
    return {**asked, "machine": describe_machine(), "results": results}


def _spread(rounds: Sequence[dict], key: str) -> tuple[float, float, float] | None:
    """Median, least and greatest; None where no round has one. A goal that wasn't reached took for ever."""
    values = [math.inf if measured[key] is None else measured[key] for measured in rounds if key in measured]
    if not values or min(values) == math.inf:
        return None
    return statistics.median(values), min(values), max(values)


def _cell(rounds: Sequence[dict], key: str, form: str) -> str:
    if key in EACH:
        return ", ".join(form.format(measured[key]) for measured in rounds)
    spread = _spread(rounds, key)
    if spread is None:
        return ""
    median, least, greatest = ("never" if value == math.inf else form.format(value) for value in spread)
    return median if least == greatest else f"{median} ({least}–{greatest})"


def _history(run: Path) -> History:
    try:
        return read_history(run, TOP1)
    except InputError:  # it has logged nothing yet
        return History()


def _commit() -> str | None:
    """The commit of the source, with ``-dirty`` where it was changed since; None where it isn't in git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _psutil():
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise InputError("the benchmark of training needs psutil", "pip install psutil") from error
    return psutil
