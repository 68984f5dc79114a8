"""benchmarks/peers: the adapters that the main environment can run, the driver, and the arithmetic of its table."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import common
import pytest
import run as driver
import summary
import timm
import torch
from PIL import Image
from torchvision import transforms

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"

SMALL = ("--network", "resnet18", "--size", 48, "--val-resize", 72, "--val-size", 64, "--batch-size", 16)


def start(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PEERS.parents[1])}
    command = [sys.executable, PEERS / script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def top1(weights: dict, dataset: Path) -> tuple[float, float]:
    """The least and the most of a ResNet-18 on the val photos, in percent: where two classes nearly tie, either may win
    in another order of additions."""
    model = timm.create_model("resnet18", num_classes=5)
    model.load_state_dict(weights)
    model.eval()
    steps = [transforms.Resize(72), transforms.CenterCrop(64), transforms.ToTensor()]
    prepare = transforms.Compose([*steps, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    samples = [line.rpartition(" ") for line in (dataset / "val.txt").read_text().splitlines()]
    images = torch.stack([prepare(Image.open(dataset / name).convert("RGB")) for name, _, _ in samples])
    with torch.no_grad():
        scores = model(images)
    labels = torch.tensor([int(label) for _, _, label in samples])
    first, second = scores.topk(2).values.T
    is_sure = first - second > 0.02 * (scores.amax(1) - scores.amin(1))
    right = scores.argmax(1) == labels
    return 100 * (right & is_sure).float().mean().item(), 100 * (right | ~is_sure).float().mean().item()


# timm leaves the last, smaller batch of an epoch out, torchvision's reference trains on it: 40 photos in batches of 16.
@pytest.mark.parametrize(
    "name, images, checkpoint, key",
    [
        pytest.param("torchvision", 40, "checkpoint.pth", "model", marks=pytest.mark.slow),
        pytest.param("timm", 32, "last.pth.tar", "state_dict", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_counts_its_images_and_prints_what_its_weights_reach(
    name: str, images: int, checkpoint: str, key: str, dataset: Path, tmp_path: Path
) -> None:
    options = ("--data", dataset, "--work-dir", tmp_path, "--epochs", 1, "--workers", 0)
    done = start(f"with_{name}.py", *options, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    epoch, last = (json.loads(line) for line in done.stdout.splitlines() if line)
    assert epoch["epoch"] == 1 and epoch["images"] == images and epoch["images_per_second"] > 0
    assert 0 < epoch["seconds"] < 240 and last["versions"]["timm"] == timm.__version__
    weights = torch.load(tmp_path / checkpoint, weights_only=True)[key]
    least, most = top1(weights, dataset)
    assert least - 1e-3 <= epoch["top1"] <= most + 1e-3


@pytest.mark.slow
def test_the_driver_runs_what_is_there_and_says_what_is_not(dataset: Path, tmp_path: Path) -> None:
    options = ("--data", dataset, "--out", "out", "--weights", "none", "--epochs", 1, "--workers", 0, "--rounds", 1)
    peers = ("--peers", "mmpretrain", "fastai", "--python", sys.executable, "--target", 0, "--limit", 20)
    done = start("run.py", *options, *SMALL, *peers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["train_photos"] == 20 and results["settings"]["val_photos"] == 10
    assert results["machine"]["cores"] == os.cpu_count()
    ran, missing = results["runs"]
    assert ran["reason"] is None and ran["versions"]["mmpretrain"]
    assert [epoch["images"] for epoch in ran["epochs"]] == [20]
    assert ran["epochs"][0]["seconds"] < ran["seconds"] and ran["peak_rss_mb"] > 100
    assert missing["epochs"] == [] and "No module named" in missing["reason"]
    rows = {row["name"]: row for row in results["summary"]}
    assert rows["mmpretrain"]["n"] == 1 and rows["mmpretrain"]["speedup"]["median"] == 1
    assert rows["fastai"]["n"] == 0 and rows["fastai"]["seconds_to_target"] is None
    assert (tmp_path / "out" / "table.md").read_text() == done.stdout
    again = start("run.py", *options, cwd=tmp_path)
    assert again.returncode == 2 and "out holds results already" in again.stderr
    assert "| mmpretrain | 1 |" in done.stdout and "| fastai | 0; 1 failed: exit code 1: " in done.stdout


def test_weights_that_are_missing_and_an_unknown_peer_are_bad_input(dataset: Path, tmp_path: Path) -> None:
    for wrong, said in (
        (("--network", "resnet50"), "error: no weights for resnet50 · hint: --weights FILE"),
        (("--peers", "timn"), "error: argument --peers: invalid choice: 'timn'"),
        (("--weights", "none", "--ours", "configs/nope.py --amp"), "--ours 'configs/nope.py --amp' names no config"),
        (("--rounds", "0"), "error: argument --rounds: 0 is not a whole number from 1 on"),
    ):
        done = start("run.py", "--data", dataset, *wrong, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "work_dirs").exists()


def test_our_own_epochs_are_read_off_the_log_of_a_run(trained: Path) -> None:
    watched = driver.Scalars(trained, photos=40)
    watched.look()
    got = watched.read()
    log = next(trained.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [epoch["top1"] for epoch in got["epochs"]] == [e["accuracy/top1"] for e in lines if "accuracy/top1" in e]
    assert [epoch["images"] for epoch in got["epochs"]] == [40, 80]
    # Five batches of 8 an epoch, and one line for each.
    seconds = [line["time"] for line in lines if "loss" in line]
    assert [epoch["images_per_second"] for epoch in got["epochs"]] == [pytest.approx(8 / mean) for mean in seconds]


def test_a_report_counts_batches_in_training_and_refuses_a_validation_that_skips_photos(capsys) -> None:
    network = torch.nn.Flatten()
    report = common.Report(network, type("", (), {"val": range(3)}))
    for size in (4, 4, 2):
        network(torch.zeros(size, 3))
    network.eval()
    network(torch.zeros(3, 3))
    report.epoch(50.0)
    line = json.loads(capsys.readouterr().out)
    assert line["images"] == 10 and line["top1"] == 50 and line["images_per_second"] > 0
    network(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="saw 2 photos, of 3"):
        report.epoch(50.0)


def run_of(name: str, number: int, *epochs: tuple[float, float], reason: str | None = None, side: str = "peer") -> dict:
    found = [{"seconds": s, "top1": t, "images_per_second": 10.0 * i} for i, (s, t) in enumerate(epochs, 1)]
    seconds = epochs[-1][0] + 1 if epochs else 1.0
    facts = {"reason": reason, "epochs": found, "seconds": seconds, "peak_rss_mb": 100.0}
    return {"name": name, "side": side, "round": number, **facts}


def test_times_and_ratios_are_those_of_the_rounds() -> None:
    runs = [
        run_of("slow", 0, (10, 90), (20, 92), (30, 95)),
        run_of("quick", 0, (8, 90), (16, 94), (24, 93)),
        run_of("ours", 0, (2, 80), (4, 95), side="ours"),
        run_of("broken", 0, reason="exit code 1: no | such thing"),
        run_of("slow", 1, (10, 90), (20, 91)),
        run_of("quick", 1, (9, 90), (18, 91), (27, 95)),
        run_of("ours", 1, (3, 94), (6, 95), side="ours"),
        run_of("broken", 1, reason="exit code 1: no | such thing"),
    ]
    slow, quick, ours, broken = summary.summarize(runs, 94)
    assert slow["seconds_to_target"] == (math.inf, 30, math.inf)  # reached in one of two rounds: no median
    assert quick["seconds_to_target"] == (21.5, 16, 27)
    assert ours["speedup"] == (6.5, 4, 9)  # 16 / 4 and 27 / 3
    assert quick["speedup"] == (1, 1, 1)
    assert slow["speedup"].least == 0
    assert quick["images_per_second"] == (25, 25, 25)  # of the second and third epoch
    assert ours["rate_ratio"] == (0.8, 0.8, 0.8)
    assert quick["seconds_per_epoch"] == (8.5, 8, 9)
    assert broken["n"] == 0 and len(broken["failures"]) == 2 and broken["speedup"] is None
    lines = summary.table([slow, quick, ours, broken], 94).splitlines()
    assert "| slow | 2 | never (30–never) | 0.27 (0.00–0.53) |" in lines[2]
    assert "| **ours** | 2 | 4 (3–4) | 6.50 (4.00–9.00) |" in lines[4]
    assert "| broken | 0; 2 failed: exit code 1: no ¦ such thing | – |" in lines[5]
