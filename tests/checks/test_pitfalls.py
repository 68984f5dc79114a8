"""The mistakes of docs/pitfalls.md, each made on purpose, and the page's messages held against the real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps

from mmflowers.checks.findings import Finding
from mmflowers.checks.run import check_config, check_dataset
from mmflowers.engine.configuration import load_config
from mmflowers.registry import MODELS

PAGE = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
FOLDERS = "dict(_delete_=True, type='CustomDataset', data_root='flower_dataset', pipeline={{_base_.%s_pipeline}}%s)"


@pytest.fixture
def folder(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the dataset folder as ``flower_dataset`` in the current folder."""
    shutil.copytree(dataset, tmp_path / "flower_dataset")
    monkeypatch.chdir(tmp_path)
    return Path("flower_dataset")


@pytest.fixture
def check(folder: Path, tiny_config: Path) -> Callable[..., list[Finding]]:
    """Check the tiny config with some lines more, without weights unless some are named."""

    # ResNet-18 at its own width, which weights of others fit.
    width = "model = dict(backbone=dict(base_channels=64, stem_channels=64), head=dict(in_channels=512))"
    Path("whole.py").write_text(f"_base_ = {str(tiny_config)!r}\n{width}\n", encoding="utf-8")

    def check(lines: str = "", weights: str = "none", options: tuple[str, ...] = ()) -> list[Finding]:
        Path("mine.py").write_text(f"_base_ = './whole.py'\n{lines}\n", encoding="utf-8")
        return check_config("mine.py", weights=weights, cfg_options=options)

    return check


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import resnet18

    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


def line(finding: Finding) -> str:
    return f"{finding.level}: {finding.where}: {finding.what} · hint: {finding.hint}"


def shown(findings: list[Finding], level: str, *words: str) -> None:
    """Some finding of this level has these words, and the page shows its very line."""
    lines = [line(finding) for finding in findings]
    found = [text for text in lines if text.startswith(f"{level}: ") and all(word in text for word in words)]
    assert found, (words, lines)
    assert any(text in PAGE for text in found), f"docs/pitfalls.md shows none of {found}"


def datasets(train: str, val: str) -> str:
    return (
        f"train_dataloader = dict(dataset={FOLDERS % ('train', train)})\n"
        f"val_dataloader = dict(dataset={FOLDERS % ('test', val)})\ntest_dataloader = val_dataloader\n"
    )


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def move_between_splits(folder: Path) -> None:
    """Let each split have a photo that the other had: what a new random split does to some."""
    train, val = (sorted(folder.glob(f"{split}/daisy/*"))[0] for split in ("train", "val"))
    for photo, there in ((train, "val"), (val, "train")):
        here = photo.parts[1]
        photo.rename(folder / there / "daisy" / photo.name)
        edit(folder / f"{here}.txt", lambda lines, name=photo.name: [line for line in lines if f"/{name} " not in line])
        edit(folder / f"{there}.txt", lambda lines, name=photo.name, split=there: [*lines, f"{split}/daisy/{name} 0"])


@pytest.mark.slow
def test_weights_that_the_model_names_are_checked_as_those_of_load_from(check, resnet18: Path) -> None:
    shutil.copy(resnet18, "resnet18.pth")
    state_dict = torch.load(resnet18, weights_only=True)
    torch.save({key: state_dict[key] for key in state_dict if "layer4" not in key}, "part.pth")
    torch.save({key: torch.zeros(1) for key in state_dict}, "other.pth")
    named = "load_from = None\nmodel = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='%s.pth')))\n"
    assert check(named % "resnet18", weights=None) == []
    (rate,) = check(named % "resnet18" + "optim_wrapper = dict(optimizer=dict(lr=0.1))", weights=None)
    assert "resnet18.pth is pretrained" in rate.what
    (raw,) = check(named % "resnet18" + "data_preprocessor = dict(mean=[127.5], std=[127.5])", weights=None)
    assert "the weights were trained with [123.675" in raw.what
    (part,) = check(named % "part", weights=None)
    assert (part.level, part.where) == ("warning", "model.backbone.init_cfg") and "25 missing" in part.what
    (other,) = check(named % "other", weights=None)
    assert other.level == "error" and "of another shape" in other.what
    for source, words in (("none.pth", "no weights at none.pth"), ("torchvision://resnet19", "has no resnet19")):
        (gone,) = check(named.replace("%s.pth", source), weights=None)
        assert gone.level == "error" and words in gone.what
    assert check(named % "other", weights="none") == check(named % "other", weights="resnet18.pth") == []
    assert "names no weights" in check("load_from = None", weights=None)[0].what


def test_what_is_in_order_gives_no_finding(check, resnet18: Path) -> None:
    assert check() == []
    assert check(weights=str(resnet18)) == []


def test_01_a_folder_per_class_loader_at_the_converted_dataset(check) -> None:
    shown(check(datasets("", "")), "error", "would use the folders train and val of flower_dataset as classes")
    from mmpretrain.datasets import CustomDataset

    assert CustomDataset(data_root="flower_dataset").CLASSES == ("train", "val")  # what would have been learned


def test_01_the_preparation_asks_what_to_do_with_folders_train_and_val(folder: Path) -> None:
    result = run_tool("prepare_flowers.py", "--source", folder, "--out", "again", cwd=Path.cwd())
    assert result.returncode == 2 and "--split keep" in result.stderr
    assert result.stderr.strip() in PAGE


def test_02_two_independent_splits_put_val_photos_into_train(folder: Path, check) -> None:
    photo = sorted((folder / "val" / "rose").iterdir())[0]
    shutil.copy(photo, folder / "train" / "rose" / "copy.jpg")
    edit(folder / "train.txt", lambda lines: sorted([*lines, "train/rose/copy.jpg 2"]))
    shown(check(), "error", "1 photo of val is in train too", "a leak")
    shutil.move(folder / "train" / "rose" / "copy.jpg", folder / "train" / "rose" / photo.name)
    edit(folder / "train.txt", lambda lines: [text.replace("copy.jpg", photo.name) for text in lines])
    shown(check(), "error", "1 photo is in two splits (rose/")


def test_02_a_deep_check_finds_mirrored_and_cropped_copies(folder: Path) -> None:
    photo = sorted((folder / "val" / "rose").iterdir())[0]
    with Image.open(photo) as image:
        width, height = image.size
        changed = ImageOps.mirror(image.crop((0, 0, width * 4 // 5, height * 4 // 5)))
    changed.save(folder / "train" / "rose" / "copy.jpg")
    edit(folder / "train.txt", lambda lines: sorted([*lines, "train/rose/copy.jpg 2"]))
    assert not [finding for finding in check_dataset(folder) if "looks like" in str(finding)]
    what = "1 photo of val looks like a photo of train: a re-encoded, resized, mirrored, turned, cropped or framed copy"
    shown(check_dataset(folder, deep=True), "error", what, photo.name)


def test_02_copies_that_the_preparation_was_asked_to_keep_are_a_warning(folder: Path) -> None:
    photo = sorted((folder / "val" / "rose").iterdir())[0]
    shutil.copy(photo, folder / "train" / "rose" / "copy.jpg")
    edit(folder / "train.txt", lambda lines: [*lines, "train/rose/copy.jpg 2"])
    metadata = json.loads((folder / "dataset.json").read_text())
    metadata["options"]["duplicates"] = "keep"
    (folder / "dataset.json").write_text(json.dumps(metadata))
    shown(check_dataset(folder), "warning", "1 photo of val is in train too", "--duplicates keep")


@pytest.mark.slow
def test_03_weights_of_a_run_on_another_split(folder: Path, trained: Path, check) -> None:
    shutil.copy(trained / "best.pth", "best.pth")
    narrow = "model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(in_channels=128))"
    assert not [finding for finding in check(narrow, "best.pth") if finding.level == "error"]  # the same split
    move_between_splits(folder)
    shown(check(narrow, "best.pth"), "error", "best.pth was trained on 1 of the 10 photos of val")
    arguments = ("test.py", trained / "tiny.py", "best.pth", "--data", folder, "--work-dir", "out")
    tested = run_tool(*arguments, cwd=Path.cwd())
    assert tested.returncode == 2 and "was trained on 1 of the 10 photos of val" in tested.stderr
    skipped = run_tool(*arguments, "--skip-checks", cwd=Path.cwd())
    assert skipped.returncode == 0, skipped.stderr


def test_03_a_resume_on_another_split(folder: Path, trained: Path, tiny_config: Path) -> None:
    move_between_splits(folder)
    arguments = ("--resume", trained / "last.pth", "--work-dir", "new")
    result = run_tool("train.py", tiny_config, *arguments, cwd=Path.cwd())
    assert result.returncode == 2 and "was trained on 1 of the 10 photos of val" in result.stderr


@pytest.mark.slow
def test_03_exercise_2_continued_on_another_split(folder: Path) -> None:
    small = ("--epochs", "1", "--workers", "0", "--device", "cpu")
    first = run_tool("train_torch.py", "--weights", "none", *small, cwd=Path.cwd())
    assert first.returncode == 0, first.stderr
    move_between_splits(folder)
    weights = ("--weights", "work_dirs/torch_resnet18/best_model.pth", "--work-dir", "second")
    second = run_tool("train_torch.py", *weights, *small, cwd=Path.cwd())
    assert second.returncode == 2 and "was trained on 1 of the 10 photos of val" in second.stderr


def test_04_a_splitter_that_ran_twice(folder: Path, check) -> None:
    photo = sorted((folder / "val" / "tulip").iterdir())[0]
    shutil.copy(photo, folder / "train" / "tulip")
    shown(check(), "warning", "1 photo is on no list (train/tulip/")
    edit(folder / "train.txt", lambda lines: sorted([*lines, f"train/tulip/{photo.name} 4"]))
    shown(check(), "error", "1 photo is in two splits (tulip/")


def test_05_validation_with_training_augmentation(check) -> None:
    val = "val_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))"
    shown(
        check(val),
        "error",
        "val_dataloader.dataset.pipeline",
        "RandomResizedCrop, RandomFlip",
        "deterministic transforms",
    )
    train = "train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))"
    findings = check(f"{val}\n{train}")
    shown(findings, "error", "val_dataloader.dataset.pipeline", "pipelines are swapped")
    shown(findings, "warning", "train_dataloader.dataset.pipeline", "has no augmentation")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: ["".join(lines)], "lines aren't separated"),
        (lambda lines: [str(tuple(text.split(" "))) for text in lines], "Python tuples"),
        (lambda lines: [f"{text.split(' ')[0]} {text.split('/')[1]}" for text in lines], "class names, not numbers"),
        (lambda lines: [text.replace("/", "\\") for text in lines], "backslashes"),
    ],
    ids=["no newlines", "tuples", "class names", "backslashes"],
)
def test_06_lists_as_other_scripts_write_them(change: Callable, words: str, folder: Path, check) -> None:
    edit(folder / "train.txt", change)
    shown(check(), "error", "train.txt", words)


def test_07_class_order_of_an_unsorted_directory_listing(folder: Path, check) -> None:
    edit(folder / "classes.txt", lambda names: [names[1], names[0], *names[2:]])
    shown(check(), "error", "against the class folder")


@pytest.mark.slow
def test_07_a_loader_that_numbers_folders_otherwise_than_classes_txt(folder: Path, check) -> None:
    names = ["dandelion", "daisy", "rose", "sunflower", "tulip"]
    edit(folder / "classes.txt", lambda _: names)
    swap = {"0": "1", "1": "0"}
    for split in ("train", "val"):
        pairs = [text.split(" ") for text in (folder / f"{split}.txt").read_text().splitlines()]
        edit(folder / f"{split}.txt", lambda _, pairs=pairs: [f"{path} {swap.get(y, y)}" for path, y in pairs])
    assert check() == []  # ours goes by classes.txt, whatever its order
    shown(check(datasets(", data_prefix='train'", ", data_prefix='val'")), "error", "would use the folders daisy")


@pytest.mark.slow
def test_08_class_names_unlike_the_folders_or_missing(check) -> None:
    named = ", ann_file='%s.txt', metainfo=dict(classes=['daisy', 'dandelion', 'roses', 'sunflower', 'tulip'])"
    shown(check(datasets(named % "train", named % "val")), "error", "names the classes daisy, dandelion, roses")
    listed = datasets(", ann_file='train.txt'", ", ann_file='val.txt'")
    shown(check(listed), "error", "has no class names")
    imagenet = listed.replace("CustomDataset", "ImageNet")
    shown(check(imagenet), "error", "stores ImageNet's 1000 class names")
    from mmpretrain.datasets import ImageNet

    loaded = ImageNet(data_root="flower_dataset", ann_file="train.txt")
    assert loaded.CLASSES[0].startswith("tench")  # what a daisy would have been called


def test_09_split_and_data_prefix_both_set(check) -> None:
    both = ", split='%s', data_prefix='%s', ann_file='%s.txt'"
    findings = check(datasets(both % (("train",) * 3), both % (("val",) * 3)))
    shown(findings, "error", "train_dataloader.dataset", "split and data_prefix are both set")
    shown(
        findings,
        "error",
        "train_dataloader.dataset",
        "its list would be flower_dataset/train/train/",
    )
    shown(findings, "error", "train_dataloader.dataset.split", "unknown argument of CustomDataset")


def test_10_same_named_files_of_two_classes_merged(folder: Path, check) -> None:
    lines = []
    for label, name in enumerate(("daisy", "dandelion", "rose", "sunflower", "tulip")):
        for number, photo in enumerate(sorted((folder / "train" / name).iterdir())):
            photo.replace(folder / "train" / f"image{number}.jpg")  # the later class writes over the earlier one
            lines.append(f"train/image{number}.jpg {label}")
    edit(folder / "train.txt", lambda _: lines)
    shown(check(), "error", "lists train/image0.jpg, train/image1.jpg", "twice")
    edit(folder / "train.txt", lambda _: [f"train/image{number}.jpg {number % 5}" for number in range(8)])
    shown(check(), "warning", "8 photos of train.txt are in no folder of their class")


def test_10_the_preparation_keeps_same_names_apart(dataset: Path, tmp_path: Path) -> None:
    for name in ("rose", "tulip"):
        for number, photo in enumerate(sorted((dataset / "train" / name).iterdir())):
            target = tmp_path / "photos" / name / f"image{number}{photo.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target)
    assert run_tool("prepare_flowers.py", "--source", "photos", "--out", "data", cwd=tmp_path).returncode == 0
    lines = [
        text for split in ("train", "val") for text in (tmp_path / "data" / f"{split}.txt").read_text().splitlines()
    ]
    assert len(lines) == 16 and check_dataset(tmp_path / "data", deep=True) == []


@pytest.mark.slow
def test_11_a_schedule_that_never_fires(check) -> None:
    steps = "param_scheduler = dict(_delete_=True, type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90])"
    shown(check(f"{steps}\ntrain_cfg = dict(max_epochs=20)"), "warning", "has no effect within 20 epochs")
    constant = "param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1.0, by_epoch=True)"
    assert check(constant) == []  # a constant rate that is said so is meant
    assert check("train_cfg = dict(max_epochs=2)") == []
    shown(check("train_cfg = dict(max_epochs=4)"), "warning", "ends at epoch 2 of 4")
    iterations = "param_scheduler = dict(_delete_=True, type='PolyLR', eta_min=1e-5, by_epoch=False, end=5)"
    assert "ends at epoch 1 of 2" in str(check(iterations))  # 40 photos in batches of 8
    warm_up = "param_scheduler = dict(_delete_=True, type='LinearLR', start_factor=0.1, by_epoch=True, end=1)"
    assert check(warm_up) == []  # then the rate is the optimizer's


def test_12_imagenets_rate_kept_for_fine_tuning(check, resnet18: Path) -> None:
    shutil.copy(resnet18, "resnet18.pth")
    rate = "optim_wrapper = dict(optimizer=dict(lr=0.1))"
    shown(check(rate, weights="resnet18.pth"), "warning", "0.1 is a learning rate for training from scratch")
    assert check(rate) == []  # from scratch it is right


def test_13_keys_of_the_old_dialect_and_typos(check) -> None:
    old = "data = dict(samples_per_gpu=32, workers_per_gpu=2)\nrunner = dict(type='EpochBasedRunner', max_epochs=20)"
    findings = check(f"{old}\ntrain_cgf = dict(max_epochs=20)\ntrain_dataloader = dict(samples_per_gpu=16)")
    shown(findings, "error", "data: a key of MMPretrain 0.x")
    shown(findings, "error", "runner: a key of MMPretrain 0.x")
    shown(findings, "error", "train_cgf: unknown key, which is ignored · hint: did you mean train_cfg?")
    shown(findings, "error", "train_dataloader.samples_per_gpu", "use batch_size")
    typos = "model = dict(backbone=dict(frozen_stage=1), head=dict(los=dict(type='CrossEntropyLoss')))"
    findings = check(f"{typos}\noptim_wrapper = dict(optimizer=dict(weigth_decay=1e-4))")
    shown(findings, "error", "model.backbone.frozen_stage", "did you mean frozen_stages?")
    shown(findings, "error", "optim_wrapper.optimizer.weigth_decay", "did you mean weight_decay?")
    shown(check(options=("batch_size=64",)), "error", "batch_size: unknown key")
    findings = check("train_cfg = dict(max_epochs='20')\noptim_wrapper = dict(optimizer=dict(lr='0.01'))")
    shown(findings, "error", "train_cfg.max_epochs", "must be an integer of at least 1, not '20'")
    shown(findings, "error", "optim_wrapper.optimizer.lr", "must be a number above 0, not '0.01'")


def test_14_the_test_side_left_on_imagenet(folder: Path) -> None:
    whole = (ROOT / "configs" / "resnet50_flowers.py").read_text(encoding="utf-8")
    kept = [text for text in whole.splitlines() if not text.startswith(("test_dataloader", "test_evaluator"))]
    Path("mine.py").write_text("\n".join(kept), encoding="utf-8")
    findings = check_config("mine.py", weights="none")
    shown(findings, "error", "the config names different dataset folders: data/imagenet, flower_dataset")
    findings = check_config("mine.py", data="flower_dataset", weights="none")
    shown(findings, "error", "test_dataloader.dataset.type", "ImageNet here, FlowersDataset in val")
    shown(findings, "error", "test_evaluator.topk", "top-5 of 5 classes is always 100 %")


def test_15_the_last_checkpoint_in_place_of_the_best(trained: Path) -> None:
    here = trained.parents[1]
    result = run_tool("test.py", "work_dirs/tiny/last.pth", "--work-dir", "out15", cwd=here)
    assert result.returncode == 0, result.stderr
    told = [text for text in result.stderr.splitlines() if text.startswith("warning: ")]
    assert len(told) == 1 and told[0] in PAGE
    assert json.loads((here / "out15" / "test" / "checks.json").read_text())[0]["pitfall"] == 15


def test_16_the_top_five_of_five_classes(check) -> None:
    findings = check("val_evaluator = dict(topk=(1, 5))\ntest_evaluator = val_evaluator")
    shown(findings, "error", "val_evaluator.topk: top-5 of 5 classes is always 100 %")


@pytest.mark.slow
def test_17_mean_and_std_of_another_scale_or_backbone(check, resnet18: Path) -> None:
    shutil.copy(resnet18, "resnet18.pth")
    unit = "data_preprocessor = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
    shown(check(unit, weights="resnet18.pth"), "error", "is for pixels in 0..1, but the pixels are in 0..255")
    other = "data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])"
    shown(check(other, weights="resnet18.pth"), "warning", "the weights were trained with [123.675")
    lite = (ROOT / "configs" / "efficientnet_lite0_flowers.py").as_posix()
    imagenet = "data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])"
    Path("lite.py").write_text(f"_base_ = {lite!r}\n{imagenet}\n", encoding="utf-8")
    shown(check_config("lite.py"), "warning", "the weights were trained with [127.5, 127.5, 127.5]")


@pytest.mark.slow
def test_17_mean_std_and_channel_order_of_openmmlabs_weights(folder: Path) -> None:
    ours = ("datasets/flowers_224.py", "schedules/sgd_8e.py", "default_runtime.py")
    bases = [(ROOT / "configs" / "_base_" / name).as_posix() for name in ours]
    network = f"_base_ = {['mmpretrain::_base_/models/regnet/regnetx_400mf.py', *bases]}\n"
    weights = "regnetx-400mf_8xb128_in1k_20211213-89bfc226.pth"  # trained on BGR
    Path("mine.py").write_text(network, encoding="utf-8")
    with DefaultScope.overwrite_default_scope("mmflowers"):
        torch.save(MODELS.build(load_config("mine.py").model).state_dict(), weights)

    def found(*values: str) -> list[Finding]:
        options = [f"data_preprocessor.{value}" for value in values]
        return check_config("mine.py", data=folder, weights=weights, cfg_options=options)

    shown(found(), "warning", "the weights were trained with [103.53, 116.28, 123.675]")
    assert "to_rgb=False" in found()[0].hint
    bgr = ("mean=103.53,116.28,123.675", "std=57.375,57.12,58.395")
    shown(found(*bgr), "warning", "the network gets RGB, but the weights expect BGR")
    assert found(*bgr, "to_rgb=False") == []


def test_17_a_config_that_names_no_normalisation_is_refused_with_the_options_that_add_it(check, resnet18: Path) -> None:
    shutil.copy(resnet18, "resnet18.pth")
    none = "data_preprocessor = dict(_delete_=True, num_classes=5)"
    for weights in ("none", "resnet18.pth"):
        findings = check(none, weights=weights)
        shown(findings, "error", "black and white reach the network as 0 and 255: pixels aren't normalised")
    options = findings[0].hint.removeprefix("--cfg-options ").split()
    assert check(none, weights="resnet18.pth", options=tuple(options)) == []
    in_model = none + "\nmodel = dict(data_preprocessor=dict(num_classes=5))"
    options = check(in_model)[0].hint.removeprefix("--cfg-options ").split()
    assert check(in_model, options=tuple(options)) == []


def test_17_what_normalises_elsewhere_is_taken_and_raw_pixels_that_are_named_are_a_warning(check) -> None:
    none = "data_preprocessor = dict(_delete_=True, num_classes=5)\n"
    normalise = "dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True)"
    load, pack = "dict(type='LoadImageFromFile')", "dict(type='PackInputs')"
    crop = {"train": "dict(type='RandomResizedCrop', scale=48)", "test": "dict(type='Resize', scale=(48, 48))"}
    pipeline = f"dict(dataset=dict(pipeline=[{load}, %s, {normalise}, {pack}]))\n"
    pipelines = [f"{side}_dataloader = {pipeline % crop[side]}" for side in crop]
    findings = check(none + "".join(pipelines) + "val_dataloader = test_dataloader\n")
    assert not [finding for finding in findings if finding.where == "data_preprocessor"]
    named = check("data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1])")
    assert [finding.level for finding in named] == ["warning"] and "0 and 255" in named[0].what


@pytest.mark.slow
def test_18_freezing_that_matches_no_layer(check) -> None:
    keys = "optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'%s': dict(lr_mult=0)}))"
    shown(check(keys % "backbone.features"), "error", "custom_keys.backbone.features: matches no parameter")
    assert check(keys % "backbone.layer1") == []
    assert check("model = dict(backbone=dict(frozen_stages=1))") == []
    findings = check("model = dict(backbone=dict(frozen_stages=9))")
    shown(findings, "error", "model: can't be built", "layer5")


def test_six_things_wrong_at_once_are_six_lines(folder: Path, tiny_config: Path, trained: Path) -> None:
    edit(folder / "train.txt", lambda lines: [*lines[1:], "/photos/x.jpg 0", "train/rose/gone.jpg 2", lines[1]])
    checkpoint = torch.load(trained / "best.pth", weights_only=True)
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}, "meta": checkpoint["meta"]}, "wrong.pth")
    wrong = "train_cgf = dict(max_epochs=1)\ntrain_dataloader = dict(batch_size=0.5)"
    Path("mine.py").write_text(f"_base_ = {str(tiny_config)!r}\n{wrong}\n", encoding="utf-8")
    result = run_tool("train.py", "mine.py", "--weights", "wrong.pth", cwd=Path.cwd())
    assert result.returncode == 2
    errors = [text for text in result.stderr.splitlines() if text.startswith("error: ") and " · hint: " in text]
    assert len(errors) == 6, result.stderr
    for words in (
        "absolute, outside of the folder or with backslashes",
        "missing file (train/rose/gone.jpg)",
        "twice",
        "don't fit the backbone ResNet",
        "train_cgf:",
        "train_dataloader.batch_size:",
    ):
        assert sum(words in text for text in errors) == 1, (words, errors)
    assert not Path("work_dirs").exists()


def test_the_page_tells_of_every_pitfall() -> None:
    numbers = [text.split(" ")[1] for text in PAGE.splitlines() if text.startswith("## ")]
    assert [number for number in numbers if number.isdecimal()] == [str(n) for n in range(1, 29)]


def test_every_shipped_config_and_a_sample_of_mmpretrains_has_keys_that_are_read() -> None:
    import mmpretrain

    import mmflowers.datasets.flowers
    import mmflowers.engine.training  # noqa: F401  registers
    from mmflowers.checks.keys import arguments, numbers, parts_are_there, top_level_keys
    from mmflowers.checks.run import Case

    theirs = sorted(Path(mmpretrain.__file__).parent.glob(".mim/configs/*/*_in1k.py"))[::12]
    # hornet's and twins' have such mistakes; replknet's can't be read by MMEngine
    theirs = [path for path in theirs if not path.name.startswith(("hornet", "twins", "replknet"))]
    ours = sorted((ROOT / "configs").glob("*.py"))
    assert len(ours) >= 4
    for path in [*ours, *theirs]:
        case = Case(Config.fromfile(path))
        checks = (arguments, numbers, top_level_keys, *([parts_are_there] if path in ours else ()))
        assert [line(finding) for one in checks for finding in one(case)] == [], path


def test_warnings_are_told_once_and_kept_with_the_run(folder: Path, tiny_config: Path) -> None:
    steps = "param_scheduler = dict(_delete_=True, type='MultiStepLR', by_epoch=True, milestones=[30])"
    Path("mine.py").write_text(f"_base_ = {str(tiny_config)!r}\n{steps}\ntrain_cfg = dict(max_epochs=1)\n")
    result = run_tool("train.py", "mine.py", "--weights", "none", cwd=Path.cwd())
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("has no effect within 1 epoch:") == 1
    (kept,) = json.loads(Path("work_dirs/mine/checks.json").read_text())
    assert kept["level"] == "warning" and kept["pitfall"] == 11
    (log,) = Path("work_dirs/mine").glob("*/*.log")
    assert log.read_text().count("has no effect within 1 epoch:") == 1


@pytest.mark.parametrize(
    "lines",
    [
        *("model = 3", "model = [1]", "train_dataloader = []", "val_evaluator = 'x'", "param_scheduler = 3"),
        *("train_cfg = dict(_delete_=True)", "default_hooks = [1]", "custom_hooks = 'x'", "default_scope = 3"),
        *("randomness = [1]", "val_evaluator = dict(topk='x')", "data_preprocessor = dict(mean=[1])"),
        *("optim_wrapper = dict(optimizer=dict(_delete_=True, type=5))", "model = dict(backbone='ResNet')"),
    ],
)
def test_a_config_of_wrong_types_is_told_and_no_traceback(lines: str, check) -> None:
    assert any(finding.level == "error" for finding in check(lines))


def test_checking_alone_says_all_and_how_long_it_took(folder: Path) -> None:
    result = run_tool("check.py", "--data", folder, cwd=Path.cwd())
    assert result.returncode == 0 and result.stdout.startswith("0 errors, 0 warnings, checked in ")
    photo = sorted((folder / "val" / "rose").iterdir())[0]
    photo.write_bytes(photo.read_bytes()[:-200])
    assert run_tool("check.py", "--data", folder, cwd=Path.cwd()).returncode == 0
    deep = run_tool("check.py", "--data", folder, "--deep", "--json", cwd=Path.cwd())
    assert deep.returncode == 2
    assert [finding["level"] for finding in json.loads(deep.stdout)["findings"]] == ["error", "warning"]
    assert f"1 photo can't be decoded (val/rose/{photo.name}: truncated)" in deep.stderr
    assert "1 photo of val changed since the preparation" in deep.stderr
