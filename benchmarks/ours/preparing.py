"""How fast the preparation is against the least it could do, and how much memory it takes.

``python benchmarks/ours/preparing.py FOLDER WORKERS`` is the bare loop, in a process of its own.
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
from collections.abc import Sequence
from pathlib import Path

from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import progress

CHUNK = 24  # files handed to a process at once, as the preparation does


def measure_speed(command: Sequence[str], source: Path, *, workers: int, repeats: int) -> dict:
    """Time the whole command against a bare loop over the same files, one after the other in turn.

    The bare loop reads, hashes (sha256) and decodes every file with Pillow in as many processes, and writes nothing.
    Both are timed as processes, from start to exit: interpreter, imports, and for the command the finished dataset.
    Python's byte code is cached, as it is after a command's first run.

    Args:
        command: The preparation as one types it, without options.
        source: A folder of class folders.
        workers: Processes of either side.
        repeats: Pairs of runs.

    Returns:
        Seconds of each run, files/s by their medians, and the ratio of the rates: median, least and greatest of the
        pairs that ran next to each other.
    """
    count = len(_photos(source))
    if not count:
        raise InputError(f"{source} has no files in class folders", "give a folder such as flowers/daisy/x.jpg")
    bare_loop = [sys.executable, __file__, str(source), str(workers)]
    seconds: dict[str, list[float]] = {"bare": [], "command": []}
    with tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
        # Also where PYTHONDONTWRITEBYTECODE is set, which would make every start compile the modules again.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        # Fills that cache, and brings the files into the system's, for both sides.
        _seconds(bare_loop, env)
        _seconds(_prepare(command, source, workers, Path(folder) / "first"), env)
        # Each run has a folder of its own and all stay until the end: ext4 is slow to make files for half a minute
        # after thousands were deleted (it steps over their inodes one by one), which no first run meets.
        for run in progress(range(repeats), total=repeats, what="repeats"):
            seconds["bare"].append(_seconds(bare_loop, env))
            seconds["command"].append(_seconds(_prepare(command, source, workers, Path(folder) / str(run)), env))
    ratios = [bare / whole for bare, whole in zip(seconds["bare"], seconds["command"], strict=True)]
    return {
        "files": count,
        "workers": workers,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "bare_seconds": seconds["bare"],
        "command_seconds": seconds["command"],
        "bare_files_per_second": count / statistics.median(seconds["bare"]),
        "command_files_per_second": count / statistics.median(seconds["command"]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def measure_memory(command: Sequence[str], count: int, *, workers: int) -> dict:
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
            _prepare(command, source, workers, Path(folder) / "dataset"), stdout=subprocess.DEVNULL
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


def _seconds(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _prepare(command: Sequence[str], source: Path, workers: int, out: Path) -> list[str]:
    return [*command, "--source", str(source), "--workers", str(workers), "--out", str(out)]


def _photos(source: Path) -> list[str]:
    return sorted(str(path) for path in source.glob("*/*") if path.is_file())


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
    folder, processes = sys.argv[1:]
    with multiprocessing.Pool(int(processes)) as pool:
        pool.map(decode, _photos(Path(folder)), chunksize=CHUNK)
