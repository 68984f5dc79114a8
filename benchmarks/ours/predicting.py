"""How fast tools/predict.py is against tools/test.py on the same photos, and how much memory it takes. No torch."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.utils.terminal import progress

TOOLS = Path(__file__).parents[2] / "tools"


def measure_prediction(run: Path, source: Path, *, workers: int, repeats: int) -> dict:
    """Time the two commands, and the prediction under bfloat16, one after the other in turn.

    All are timed as processes from start to exit: imports, the loading of the run, and a file of predictions.

    Args:
        run: Work dir of a training.
        source: A dataset folder with the run's classes; the photos of its train list are used.
        workers: Processes that decode, on every side.
        repeats: Rounds.

    Returns:
        Seconds of each run, photos/s by their medians, and the ratio of the rates to that of the test: median, least
        and greatest of the rounds.
    """
    count = len(read_dataset_folder(source, splits=("train",)).samples["train"])
    rates: dict[str, list[float]] = {"test": [], "predict": [], "predict --amp": []}
    with tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
        predict = [source / "train", "--run", run, "--workers", workers, "--out", f"{folder}/rows.csv"]
        test = [run / "best.pth", "--data", source, "--split", "train", "--work-dir", folder, "--skip-checks"]
        loader = dict(batch_size=32, num_workers=workers, persistent_workers=workers > 0)
        test += ["--cfg-options", *(f"test_dataloader.{key}={value}" for key, value in loader.items())]
        commands = {
            "test": ["test.py", *test],
            "predict": ["predict.py", *predict],
            "predict --amp": ["predict.py", *predict, "--amp"],
        }
        _seconds(commands["predict"])  # brings the photos into the page cache, for all
        for _ in progress(range(repeats), total=repeats, what="rounds"):
            for side, command in commands.items():
                rates[side].append(count / _seconds(command))
    ratios = {
        side: [own / test for own, test in zip(rates[side], rates["test"], strict=True)]
        for side in ("predict", "predict --amp")
    }
    return {
        "photos": count,
        "workers": workers,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "photos_per_second": rates,
        "median_photos_per_second": {side: statistics.median(values) for side, values in rates.items()},
        "ratio": {side: [statistics.median(values), min(values), max(values)] for side, values in ratios.items()},
    }


def _seconds(command: list) -> float:
    start = time.perf_counter()
    arguments = [sys.executable, str(TOOLS / command[0]), *map(str, command[1:])]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start
