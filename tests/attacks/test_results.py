"""A number is of the photos, and of the checkpoint, that it is said to be of: in tests, reports and resumed runs."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NARROW, run_tool
from mmcv.transforms import BaseTransform
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.registry import FUNCTIONS
from mmengine.runner import ValLoop
from mmpretrain.registry import LOOPS, METRICS, TRANSFORMS
from PIL import Image

from mmflowers.datasets.identity import TRAINED_ON, from_state
from mmflowers.engine.testing import test as run_test
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.evaluation.predictions import read_predictions, write_predictions
from mmflowers.evaluation.report import read_report_data
from mmflowers.utils.errors import InputError
from mmflowers.visualization.report import write_report


@pytest.fixture
def run(dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tested run and its dataset folder, in the current folder."""
    shutil.copytree(dataset, tmp_path / "flower_dataset")
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report", "predictions_*"))
    monkeypatch.chdir(tmp_path)
    run_test(None, "run/best.pth", data="flower_dataset")
    return Path("run")


def drop_row(split: str = "val") -> None:
    path = Path("flower_dataset", f"{split}.txt")
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")


def test_a_test_of_the_whole_split_says_so_and_is_reported(run: Path) -> None:
    record = json.loads((run / "predictions_val.json").read_text())
    assert (record["checkpoint"], record["split"]) == ("best.pth", "val")
    assert record["counted"] == record["listed"] == 10
    assert "photos of val" not in write_report(read_report_data([run], data=Path("flower_dataset"))).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("test_dataloader.drop_last=True",), ("test_dataloader.dataset.indices=7",)])
def test_a_test_of_a_part_is_no_top1_of_the_split(run: Path, options: tuple[str, ...]) -> None:
    before = (run / "predictions_val.csv").read_bytes()
    tested = run_test(None, "run/best.pth", data="flower_dataset", cfg_options=options)
    assert tested.path.name == "predictions_val_partial.csv"
    assert not tested.coverage.is_whole and tested.coverage.listed == 10
    assert tested.coverage.counted == len(tested.predictions.images) < 10
    assert (run / "predictions_val.csv").read_bytes() == before


def test_photos_that_were_deleted_with_their_rows_are_missing_in_the_result(run: Path) -> None:
    (Path("flower_dataset") / Path("flower_dataset/val.txt").read_text().split(" ")[0]).unlink()
    drop_row()
    tested = run_test(None, "run/best.pth", data="flower_dataset")
    assert str(tested.coverage) == "9 of 10 photos"
    with pytest.raises(InputError, match=r"1 not in val\.txt"):  # the whole test of before isn't of this list
        read_report_data([run], data=Path("flower_dataset"))


@pytest.mark.slow
def test_the_split_that_is_asked_for_is_tested_whatever_list_a_config_names(run: Path) -> None:
    options = ("test_dataloader.dataset.ann_file=train.txt",)
    tested = run_test(None, "run/best.pth", data="flower_dataset", cfg_options=options)
    assert tested.coverage.is_whole and all(image.startswith("val/") for image in tested.predictions.images)


def test_without_checks_a_photo_that_is_counted_twice_still_gives_no_number(run: Path) -> None:
    """A wrapper of the dataset, for which ``before`` (the checks) isn't asked."""
    config = Path("run/tiny.py").read_text()
    repeated = "test_dataloader['dataset'] = dict(type='RepeatDataset', times=2, dataset=test_dataloader['dataset'])"
    Path("repeated.py").write_text(f"{config}\n{repeated}\n")
    with pytest.raises(InputError, match="10 photos of val counted more than once"):
        run_test("repeated.py", "run/best.pth", data="flower_dataset", work_dir="out")
    assert not list(Path("out").glob("predictions*"))


@pytest.mark.slow
def test_a_report_refuses_predictions_of_another_checkpoint(run: Path) -> None:
    checkpoint = torch.load(run / "best.pth", weights_only=True)
    checkpoint["state_dict"]["head.fc.bias"] += 1
    torch.save(checkpoint, run / "best.pth")
    with pytest.raises(InputError, match=r"best\.pth has changed since the test on val"):
        read_report_data([run], data=Path("flower_dataset"))
    run_test(None, "run/best.pth", data="flower_dataset")
    write_report(read_report_data([run], data=Path("flower_dataset")))


def test_a_report_refuses_predictions_that_were_edited(run: Path) -> None:
    path = run / "predictions_val.csv"
    predictions = read_predictions(path)
    predictions.scores[:] = 0
    predictions.scores[range(10), predictions.labels] = 1
    write_predictions(predictions, path)
    with pytest.raises(InputError, match="has changed since the test wrote it"):
        read_report_data([run], data=Path("flower_dataset"))


def test_predictions_without_a_record_are_shown_with_a_note(run: Path) -> None:
    (run / "predictions_val.json").unlink()
    page = html.unescape(write_report(read_report_data([run], data=Path("flower_dataset"))).read_text())
    assert "of an unknown checkpoint" in page


@pytest.mark.slow
def test_a_report_names_a_checkpoint_that_is_not_the_best(run: Path) -> None:
    run_test(None, "run/last.pth", data="flower_dataset")
    assert (
        "of last.pth, not of best.pth" in write_report(read_report_data([run], data=Path("flower_dataset"))).read_text()
    )


def test_a_report_refuses_predictions_of_another_list(run: Path) -> None:
    lines = Path("flower_dataset/val.txt").read_text().splitlines()
    swapped = [f"{line[:-1]}{(int(line[-1]) + 1) % 5}" for line in lines]
    for line in lines:  # flat, so that the labels contradict no folder
        path = line.rpartition(" ")[0]
        Path("flower_dataset", path).rename(Path("flower_dataset", Path(path).name))
    Path("flower_dataset/val.txt").write_text("\n".join(Path(line).name for line in swapped) + "\n")
    with pytest.raises(InputError, match=r"10 not in val\.txt, 10 missing"):
        read_report_data([run], data=Path("flower_dataset"))


# --------------------------------------------------------------------------------------------- trained and resumed


def start(config: Path, work_dir: str, *options: str, **more) -> object:
    more = {"weights": "none", **more}
    settled = configure(
        TrainOptions(config, data="flower_dataset", work_dir=work_dir, cfg_options=(*NARROW, *options), **more)
    )
    return train(settled)


@pytest.mark.slow
def test_a_training_that_validates_a_part_does_not_call_it_top1(run: Path, tiny_config: Path) -> None:
    outcome = start(tiny_config, "part", "val_dataloader.dataset.indices=7", "train_cfg.max_epochs=1")
    assert str(outcome).startswith("best accuracy ") and str(outcome).endswith("% on 7 of 10 photos of val at epoch 1")
    whole = start(tiny_config, "whole", "train_cfg.max_epochs=1")
    assert str(whole).startswith("best val top-1 ")


@pytest.mark.slow
def test_a_resumption_on_other_photos_is_refused_even_without_checks_and_hooks(run: Path, tiny_config: Path) -> None:
    start(tiny_config, "again", "train_cfg.max_epochs=1")
    before = Path("again/last.pth").read_bytes()
    photo = sorted(Path("flower_dataset/train/rose").iterdir())[0]
    whole = photo.read_bytes()
    photo.write_bytes(sorted(Path("flower_dataset/train/rose").iterdir())[1].read_bytes())
    with pytest.raises(InputError, match="of a run on other photos: train had 40 photos and has 40: 1 gone, 1 counted"):
        start(tiny_config, "again", "custom_hooks=[]", resume=True, weights=None)
    assert Path("again/last.pth").read_bytes() == before
    photo.write_bytes(whole)
    photo.rename(photo.with_name("rose_00000.jpg"))  # a name is no content; its place in the list stays
    path = Path("flower_dataset/train.txt")
    path.write_text(path.read_text().replace(photo.name, "rose_00000.jpg"))
    start(tiny_config, "again", resume=True, weights=None)


@pytest.mark.slow
def test_weights_pass_on_what_the_weights_before_them_were_trained_on(run: Path, tiny_config: Path) -> None:
    """Two trainings one after the other: the second one's checkpoint knows the photos of the first."""
    start(tiny_config, "first", "train_cfg.max_epochs=1")
    trained_on = Path("flower_dataset/train.txt").read_text().splitlines()
    Path("flower_dataset/train.txt").write_text("\n".join(trained_on[::2]) + "\n")  # another folder, say
    start(tiny_config, "second", "train_cfg.max_epochs=1", weights="first/best.pth")
    known = from_state(torch.load("second/best.pth", weights_only=True)["meta"][TRAINED_ON])
    assert len(known) == 40
    outcome = start(tiny_config, "second", "train_cfg.max_epochs=2", resume=True, weights=None)
    assert outcome.best_epoch in (1, 2)
    assert len(from_state(torch.load("second/last.pth", weights_only=True)["meta"][TRAINED_ON])) == 40


# -------------------------------------------------------------- what code of one's own does while photos are loaded


@TRANSFORMS.register_module()
class AllDaisies(BaseTransform):
    def transform(self, results: dict) -> dict:
        return {**results, "gt_label": 0}


@TRANSFORMS.register_module()
class SkipsSome(BaseTransform):
    """Leaves photos out, for which MMEngine then takes others at random."""

    def transform(self, results: dict) -> dict | None:
        return None if results["sample_idx"] in (1, 4) else results


@FUNCTIONS.register_module()
def first_two(samples: list) -> dict:
    return pseudo_collate(samples[:2])


@LOOPS.register_module()
class FirstBatchLoop(ValLoop):
    def run(self) -> dict:
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        for index, batch in enumerate(self.dataloader):
            if index == 0:
                self.run_iter(index, batch)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        return metrics


@METRICS.register_module()
class Flattering(BaseMetric):
    default_prefix = "accuracy"

    def __init__(self, topk: object = None) -> None:
        super().__init__()

    def process(self, data_batch: object, data_samples: list) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {"top1": 99.0}


def with_transform(config: Path, name: str, *, test_mode: bool = False) -> Path:
    steps = "[{'type':'LoadImageFromFile'},{'type':'ResizeEdge','scale':48,'edge':'short'},"
    steps += f"{{'type':'CenterCrop','crop_size':48}},{{'type':'{name}'}},{{'type':'PackInputs'}}]"
    more = ", test_mode=False" if test_mode else ""
    text = f"_base_ = {str(config)!r}\nval_dataloader = dict(dataset=dict(pipeline={steps}{more}))\n"
    Path("own.py").write_text(f"{text}test_dataloader = val_dataloader\n")
    return Path("own.py")


@pytest.mark.slow
def test_labels_that_a_transform_changes_give_no_number(run: Path, tiny_config: Path) -> None:
    config = with_transform(tiny_config, "AllDaisies")
    with pytest.raises(InputError, match=r"8 photos of val counted with another label than in val\.txt"):
        start(config, "own", "train_cfg.max_epochs=1")
    with pytest.raises(InputError, match=r"8 photos of val counted with another label than in val\.txt"):
        run_test(config, "run/best.pth", data="flower_dataset", work_dir="out")


@pytest.mark.slow
def test_photos_that_a_transform_exchanges_give_no_number(run: Path, tiny_config: Path) -> None:
    config = with_transform(tiny_config, "SkipsSome", test_mode=True)
    with pytest.raises(InputError, match=r"photos? of val counted more than once"):
        start(config, "own", "train_cfg.max_epochs=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "counted"),
    [(("val_dataloader.collate_fn.type=first_two",), 4), (("val_cfg.type=FirstBatchLoop",), 8)],
    ids=["collate", "loop"],
)
def test_photos_that_never_reach_the_metric_are_missing_in_the_result(
    run: Path, tiny_config: Path, options: tuple[str, ...], counted: int
) -> None:
    outcome = start(tiny_config, "own", *options, "train_cfg.max_epochs=1")
    assert (outcome.name, outcome.part) == ("accuracy", f" on {counted} of 10 photos of val")


@pytest.mark.slow
def test_a_metric_that_calls_something_else_top1_is_named_beside_it(run: Path, tiny_config: Path) -> None:
    outcome = start(tiny_config, "own", "val_evaluator.type=Flattering", "train_cfg.max_epochs=1")
    assert str(outcome).startswith("best accuracy/top1 (whose top-1 is ") and "99.00" in str(outcome)


# -------------------------------------------------------------------------------------------------- two runs compared


def compare_with(place: str) -> str:
    result = run_tool("test.py", "run/best.pth", "--data", "flower_dataset", "--against", place, cwd=Path.cwd())
    assert result.returncode in (0, 2), result.stderr
    return result.stderr if result.returncode else result.stdout


@pytest.mark.slow
def test_a_comparison_refuses_predictions_that_were_edited_or_are_of_other_photos(run: Path) -> None:
    shutil.copytree(run, "other")
    assert "no difference" in compare_with("other")
    predictions = read_predictions(Path("other/predictions_val.csv"))
    predictions.scores[:] = np.eye(5)[predictions.labels]
    write_predictions(predictions, Path("other/predictions_val.csv"))
    assert "has changed since the test wrote it" in compare_with("other")
    shutil.rmtree("other")
    shutil.copytree(run, "other")
    photo = sorted(Path("flower_dataset/val/rose").iterdir())[0]
    Image.effect_noise((90, 90), 60).convert("RGB").save(photo)
    run_test(None, "run/best.pth", data="flower_dataset", work_dir="new")
    with pytest.raises(InputError, match="is of photos with other contents"):
        read_report_data([Path("new"), Path("other")], data=Path("flower_dataset"))


def test_a_report_says_that_photos_have_changed_since_the_test(run: Path) -> None:
    photo = sorted(Path("flower_dataset/val/rose").iterdir())[0]
    Image.effect_noise((90, 90), 60).convert("RGB").save(photo)
    page = html.unescape(write_report(read_report_data([run], data=Path("flower_dataset"))).read_text())
    assert "some have changed since the test" in page
