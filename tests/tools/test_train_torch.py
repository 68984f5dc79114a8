"""Exercise 2 as a user runs it: every run is a process, on flowers drawn here, with OpenMMLab's packages barred."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import ForkServer
from PIL import Image, ImageDraw
from torchvision import models, transforms

SCRIPT = Path(__file__).parents[2] / "tools" / "train_torch.py"
CLASSES = ["dandelion", "löwenzahn mit leerzeichen", "rose"]
QUICK = ["--weights", "none", "--device", "cpu", "--batch-size", "8"]


def draw_flower(path: Path, label: int, seed: int) -> None:
    rng = np.random.default_rng([label, seed])
    image = Image.fromarray(rng.integers(0, 120, (64, 72, 3), dtype=np.uint8))
    x, y, radius = rng.integers(20, 44, 3)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(240, 80 * label, 40))
    if seed == 0:  # as scanners and screenshots make them: grey, and with an alpha channel
        image = image.convert("L" if label else "RGBA")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")


def make_dataset(root: Path, train: int, val: int) -> Path:
    """A dataset folder with ``train`` and ``val`` photos of each class, beside one photo that no list names."""
    for split, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        lines = []
        for label, name in enumerate(CLASSES):
            for number in numbers:
                path = f"{split}/{name}/blüte {number}.png"
                draw_flower(root / path, label, number)
                lines.append(f"{path} {label}\n")
        (root / f"{split}.txt").write_text("".join(sorted(lines)), encoding="utf-8")
    draw_flower(root / "train" / CLASSES[0] / "unlisted.png", 0, 999)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """The variables of every process: an import of OpenMMLab's packages ends it, and the net is out of reach."""
    barred = tmp_path_factory.mktemp("barred")
    for name in ("mmengine", "mmcv", "mmpretrain"):
        (barred / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    # A proxy on a loopback port that nobody listens on stands for a network that does not answer.
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    hub = {"TORCH_HOME": str(tmp_path_factory.mktemp("hub")), "no_proxy": ""}
    return {**os.environ, **proxies, **hub, "PYTHONPATH": str(barred), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


@pytest.fixture(scope="module")
def train(environment):
    server = ForkServer(("torch", "torchvision.models", "torchvision.transforms"), environment)

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
        done = server.run([str(SCRIPT), *map(str, arguments)], Path.cwd(), environment)
        assert done.returncode == code, done.stderr
        return done

    yield run
    server.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    # 12 photos to train and 9 to validate: with batches of 8 the last one of each is smaller.
    return make_dataset(tmp_path_factory.mktemp("data") / "Blüten & more", train=4, val=3)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, train, dataset):
    """Two epochs in one go, no worker processes: the work dir and what was printed."""
    work_dir = tmp_path_factory.mktemp("straight") / "my runs" / "año 1"
    done = train("--data", dataset, "--work-dir", work_dir, *QUICK, "--epochs", 2, "--workers", 0)
    return work_dir, done


def read_history(work_dir: Path) -> list[dict[str, float]]:
    with (work_dir / "history.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    a, b = load(one / "last.pth"), load(other / "last.pth")
    assert a["model"].keys() == b["model"].keys()
    for name, tensor in a["model"].items():
        assert torch.equal(tensor, b["model"][name]), name
    for index, momentum in a["optimizer"]["state"].items():
        assert torch.equal(momentum["momentum_buffer"], b["optimizer"]["state"][index]["momentum_buffer"])
    for name in ("history.csv", "history.txt", "classes.txt"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    best, other_best = load(one / "best_model.pth"), load(other / "best_model.pth")
    assert all(torch.equal(tensor, other_best[name]) for name, tensor in best.items())


def assert_problems(done: subprocess.CompletedProcess, *patterns: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(patterns), done.stderr
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.search(pattern, line), f"{pattern!r} is not in {line!r}"
        assert " · hint: " in line
    assert "Traceback" not in done.stderr


def test_help_comes_at_once_without_importing_torch(environment):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--help"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--work-dir" in done.stdout
    assert "argparse" in done.stderr
    assert not re.search(r"\|\s+(torch|torchvision|numpy|PIL)$", done.stderr, re.MULTILINE)


def test_openmmlab_is_barred_from_the_processes_of_these_tests(environment):
    for name in ("mmengine", "mmcv", "mmpretrain"):
        done = subprocess.run([sys.executable, "-c", f"import {name}"], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"{name} was imported" in done.stderr


def test_a_run_leaves_weights_classes_and_history_and_nothing_else(straight):
    work_dir, done = straight
    files = {"best_model.pth", "last.pth", "classes.txt", "history.csv", "history.txt"}
    assert {path.name for path in work_dir.iterdir()} - {".training.lock"} == {*files, "checks.json"}
    assert "unlisted.png" in (work_dir / "checks.json").read_text(encoding="utf-8")  # the one warning there is
    assert (work_dir / "classes.txt").read_text(encoding="utf-8").splitlines() == CLASSES
    history = read_history(work_dir)
    assert list(history[0]) == ["epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert "12 photos to train, 9 to validate, 3 classes" in done.stderr  # the lists count, not the folders
    last_lines = done.stdout.splitlines()
    assert last_lines[1:] == [f"weights {work_dir / 'best_model.pth'}", f"history {work_dir / 'history.csv'}"]
    assert (work_dir / "history.txt").read_text().splitlines()[-1] == last_lines[0]


def test_the_printed_best_is_what_the_saved_weights_reach_on_the_list_of_val(straight, dataset):
    work_dir, done = straight
    printed = re.match(r"best val top-1 ([\d.]+) % \((\d+)/(\d+)\) at epoch (\d)\n", done.stdout)
    accuracy, correct, total, epoch = (float(group) for group in printed.groups())
    row = read_history(work_dir)[int(epoch) - 1]
    assert row["val_acc"] == max(row["val_acc"] for row in read_history(work_dir))

    model = models.resnet18(num_classes=3)
    model.load_state_dict(load(work_dir / "best_model.pth"))
    model.eval()
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    prepare = transforms.Compose([*steps, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    samples = [line.rpartition(" ") for line in (dataset / "val.txt").read_text(encoding="utf-8").splitlines()]
    images = torch.stack([prepare(Image.open(dataset / name).convert("RGB")) for name, _, _ in samples])
    labels = torch.tensor([int(label) for _, _, label in samples])
    with torch.no_grad():
        outputs = model(images)
    assert (total, correct) == (9, (outputs.argmax(1) == labels).sum().item())
    assert accuracy == round(100 * correct / total, 2)
    # The mean of the photos, not of the batches of 8 and 1.
    assert row["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, labels).item(), rel=1e-4)


@pytest.mark.slow
def test_resumed_without_workers_ends_with_the_bits_of_the_straight_run(tmp_path, train, dataset, straight):
    arguments = ["--data", dataset, "--work-dir", tmp_path, *QUICK, "--workers", 0]
    train(*arguments, "--epochs", 1)
    train(*arguments, "--epochs", 2, "--resume")
    assert_same_run(tmp_path, straight[0])


@pytest.mark.slow
def test_resumed_with_spawned_workers_ends_with_the_bits_of_forked_ones_that_never_stopped(tmp_path, train, dataset):
    arguments = ["--data", dataset, *QUICK, "--workers", 2]
    train(*arguments, "--work-dir", tmp_path / "straight", "--epochs", 2)
    train(*arguments, "--work-dir", tmp_path / "first half", "--epochs", 1)
    (tmp_path / "first half").rename(tmp_path / "moved")
    train(*arguments, "--work-dir", tmp_path / "moved", "--epochs", 2, "--resume", "--start-method", "spawn")
    assert_same_run(tmp_path / "straight", tmp_path / "moved")


@pytest.mark.slow
def test_learning_rate_falls_tenfold_after_seven_epochs(tmp_path, train):
    dataset = make_dataset(tmp_path / "data", train=1, val=1)
    train("--data", dataset, "--work-dir", tmp_path / "run", *QUICK, "--epochs", 8, "--workers", 0)
    history = read_history(tmp_path / "run")
    assert [row["lr"] for row in history] == pytest.approx([0.001] * 7 + [0.0001])


def test_weights_stay_float32_under_amp(tmp_path, train):
    dataset = make_dataset(tmp_path / "data", train=1, val=1)
    train("--data", dataset, "--work-dir", tmp_path / "run", *QUICK, "--amp", "--epochs", 1, "--workers", 0)
    assert load(tmp_path / "run" / "best_model.pth")["conv1.weight"].dtype == torch.float32


@pytest.mark.slow
def test_training_starts_from_the_local_weights_and_force_replaces_the_old_run(tmp_path, train, dataset, straight):
    weights = tmp_path / "old format.pth"  # of 1,000 classes and without counters, as torchvision's early files
    given = {k: v for k, v in models.resnet18().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(given, weights)
    run = tmp_path / "run"
    shutil.copytree(straight[0], run)
    arguments = ["--data", dataset, "--work-dir", run, *QUICK, "--weights", weights, "--lr", 1e-12]
    train(*arguments, "--force", "--epochs", 1, "--workers", 0)
    trained = load(run / "best_model.pth")
    assert trained["fc.weight"].shape == (3, 512)
    for name in ("conv1.weight", "layer4.1.conv2.weight"):
        assert torch.allclose(trained[name], given[name], atol=1e-6), name
    assert len(read_history(run)) == 1


def test_resuming_with_other_settings_or_another_split_is_refused(tmp_path, train, dataset, straight):
    arguments = ["--work-dir", straight[0], *QUICK, "--workers", 0, "--resume", "--epochs", 3]
    other = make_dataset(tmp_path / "other", train=1, val=1)
    done = train("--data", other, *arguments, "--lr", 0.1, code=2)
    assert_problems(done, r"last\.pth is of another run: .*'lr': 0\.001.*now .*'lr': 0\.1")
    done = train("--data", other, *arguments, "--work-dir", tmp_path / "empty", code=2)
    assert_problems(done, "has no last.pth and best_model.pth to resume from")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_everything_wrong_is_said_at_once_in_a_line_each_and_hostile_weights_run_nothing(tmp_path, train):
    dataset = make_dataset(tmp_path / "data", train=2, val=2)
    truncated, no_image = dataset / f"train/{CLASSES[2]}/blüte 1.png", dataset / f"val/{CLASSES[0]}/blüte 100.png"
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    no_image.write_text("<html>not found</html>")
    torch.save({"conv1.weight": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    arguments = ["--data", dataset, "--work-dir", tmp_path / "run", "--lr", "nan", "--epochs", 0]
    done = train(*arguments, "--weights", tmp_path / "hostile.pth", code=2)
    assert_problems(
        done,
        "--epochs 0 is too small",
        "--lr nan must be a positive number",
        rf"{CLASSES[2]}/blüte 1\.png can't be decoded",
        rf"{CLASSES[0]}/blüte 100\.png can't be decoded",
        r"hostile\.pth can't be loaded safely",
    )
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


def test_missing_dataset_and_a_network_that_does_not_answer_name_the_ways_on(tmp_path, train, environment):
    done = train("--data", tmp_path / "nowhere", "--work-dir", tmp_path / "run", code=2)
    assert_problems(done, "no dataset folder at .*nowhere", r"resnet18-f37072fd\.pth can't be downloaded")
    assert f"put resnet18-f37072fd.pth into {Path(environment['TORCH_HOME'], 'hub', 'checkpoints')}" in done.stderr
    assert "--weights FILE" in done.stderr


def test_weights_of_another_network_and_a_work_dir_in_use_are_refused(tmp_path, train, dataset, straight):
    before = {path.name: path.read_bytes() for path in straight[0].iterdir()}
    state_dict = models.resnet18().state_dict()
    state_dict["backbone.conv1.weight"] = state_dict.pop("conv1.weight")
    state_dict["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    torch.save(state_dict, tmp_path / "other.pth")
    done = train("--data", dataset, "--work-dir", straight[0], "--weights", tmp_path / "other.pth", code=2)
    assert_problems(done, "holds a run already", "other.pth isn't a ResNet-18 with torchvision's key names")
    assert "backbone.conv1.weight is not expected, conv1.weight is missing" in done.stderr
    assert "layer1.0.conv1.weight is (64, 64, 1, 1), not (64, 64, 3, 3)" in done.stderr
    assert {path.name: path.read_bytes() for path in straight[0].iterdir()} == before


def test_a_hostile_last_pth_is_refused_and_runs_nothing(tmp_path, train, dataset):
    (tmp_path / "best_model.pth").write_bytes(b"")
    (tmp_path / "last.pth").write_bytes(pickle.dumps({"settings": Hostile(tmp_path / "ran")}))
    done = train("--data", dataset, "--work-dir", tmp_path, "--resume", code=2)
    assert_problems(done, r"last\.pth can't be loaded safely")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_no_number_ends_training_and_saves_no_weights(tmp_path, train, dataset):
    done = train("--data", dataset, "--work-dir", tmp_path / "run", *QUICK, "--lr", 1e30, "--workers", 0, code=2)
    assert_problems(done, "epoch 1/25 .*the loss became (nan|inf)")
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to be handled")
def test_a_sigterm_ends_it_with_143_and_leaves_whole_files(tmp_path, environment, dataset):
    command = [SCRIPT, "--data", dataset, "--work-dir", tmp_path, *QUICK, "--epochs", "999", "--workers", "0"]
    with subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "last.pth").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        try:
            stderr = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert stderr.splitlines()[-1] == "stopped"
    assert "Traceback" not in stderr
    assert load(tmp_path / "last.pth")["history"]
    assert load(tmp_path / "best_model.pth")
    assert not list(tmp_path.glob("*.tmp"))
