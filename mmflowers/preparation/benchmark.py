"""How fast the preparation is against the least it could do, and how much memory it takes.

``python -m mmflowers.preparation.benchmark bare|command …`` runs one side in a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmflowers.commands import progress
from mmflowers.errors import InputError

CHUNK = 24  # files handed to a process at once, as the preparation does


def measure_speed(source: Path, *, workers: int, repeats: int) -> dict:
    """Time the whole command against a bare loop over the same files, one after the other in turn.

    The bare loop reads, hashes (sha256) and decodes every file with Pillow in as many processes, and writes nothing.
    Both are timed as processes, from start to exit: interpreter, imports, and for the command the finished dataset.
    That start is the same for ten files and for ten thousand, so the time without it is given as well.

    Returns:
        Seconds of each run, files/s by their medians, and the ratio of the rates: median, least and greatest of the
        pairs that ran next to each other; ``ratio_after_start`` is its median without interpreter and imports.
    """
    count = len(_photos(source))
    if not count:
        raise InputError(f"{source} has no files in class folders", "give a folder such as flowers/daisy/x.jpg")
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "command": []}
    _run("bare", source, workers)  # brings the files into the page cache, for both
    for _ in progress(range(repeats), total=repeats, what="repeats"):
        seconds["bare"].append(_run("bare", source, workers))
        with tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
            seconds["command"].append(_run("command", source, workers, Path(folder) / "dataset"))
    pairs = list(zip(seconds["bare"], seconds["command"], strict=True))
    ratios = [bare / command for (bare, _), (command, _) in pairs]
    whole = {side: [run for run, _ in runs] for side, runs in seconds.items()}
    return {
        "files": count,
        "workers": workers,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "bare_seconds": whole["bare"],
        "command_seconds": whole["command"],
        "bare_files_per_second": count / statistics.median(whole["bare"]),
        "command_files_per_second": count / statistics.median(whole["command"]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_after_start": statistics.median(bare / command for (_, bare), (_, command) in pairs),
    }


def measure_memory(count: int, *, workers: int) -> dict:
    """Prepare ``count`` tiny photos and watch the memory of the command and its workers (Linux only).

    Returns:
        Peaks in MB: ``peak_rss_mb`` adds up the resident memory of all processes, so pages they share count once for
        each; ``peak_pss_mb`` counts shared pages once.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("memory is measured by Linux's /proc, which is missing here")
    with tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
        source = Path(folder) / "photos"
        _draw_tiny_photos(source, count)
        start = time.perf_counter()
        process = subprocess.Popen(
            _command("command", source, workers, Path(folder) / "dataset"), stdout=subprocess.DEVNULL
        )
        peak_rss = peak_pss = 0.0
        while process.poll() is None:
            rss, pss = _memory(process.pid)
            peak_rss, peak_pss = max(peak_rss, rss), max(peak_pss, pss)
            time.sleep(0.1)
        if process.returncode:
            raise RuntimeError(f"the command ended with {process.returncode}")
        seconds = time.perf_counter() - start
    return {
        "photos": count,
        "workers": workers,
        "seconds": seconds,
        "peak_rss_mb": peak_rss,
        "peak_pss_mb": peak_pss,
    }


def decode(path: str) -> tuple[str, tuple[int, int]]:
    """The bare loop's work on one file."""
    from PIL import Image

    data = Path(path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return digest, image.size


def _run(*arguments: object) -> tuple[float, float]:
    """Run one side; its seconds from start to exit, and those it has measured itself after its imports."""
    start = time.perf_counter()
    inside = subprocess.run(_command(*arguments), check=True, stdout=subprocess.PIPE).stdout
    return time.perf_counter() - start, float(inside)


def _command(side: str, source: Path, workers: int, *out: Path) -> list[str]:
    return [sys.executable, "-m", "mmflowers.preparation.benchmark", side, str(source), str(workers), *map(str, out)]


def _photos(source: Path) -> list[str]:
    return sorted(str(path) for path in source.glob("*/*") if path.is_file())


def _bare_loop(source: Path, workers: int) -> float:
    import PIL.Image  # noqa: F401  before the clock starts, as for the other side

    start = time.perf_counter()
    with multiprocessing.Pool(workers) as pool:
        pool.map(decode, _photos(source), chunksize=CHUNK)
    return time.perf_counter() - start


def _prepare(source: Path, workers: int, out: Path) -> float:
    from mmflowers.preparation.prepare import prepare

    return prepare(out, source=source, workers=workers).seconds


def _memory(pid: int) -> tuple[float, float]:
    """Resident and proportional memory of a process and its children, in MB."""
    pids = [pid]
    for known in pids:
        try:
            pids += map(int, Path(f"/proc/{known}/task/{known}/children").read_text().split())
        except OSError:
            continue
    total = {"Rss:": 0, "Pss:": 0}
    for known in pids:
        try:
            for line in Path(f"/proc/{known}/smaps_rollup").read_text().splitlines():
                name, *rest = line.split()
                if name in total:
                    total[name] += int(rest[0])
        except OSError:  # it has ended meanwhile
            continue
    return total["Rss:"] / 1024, total["Pss:"] / 1024


def _draw_tiny_photos(folder: Path, count: int) -> None:
    """Write ``count`` JPEGs of 32 × 32 pixels, each with a pattern of its own, into ten classes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class_{label}").mkdir(parents=True)
    for index in progress(range(count), total=count, what="drawing"):
        pattern = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / f"class_{index % 10}" / f"{index:06d}.jpg"
        pattern.resize((32, 32), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    side, source, workers, *out = sys.argv[1:]
    if side == "bare":
        print(_bare_loop(Path(source), int(workers)))
    else:
        print(_prepare(Path(source), int(workers), Path(out[0])))
