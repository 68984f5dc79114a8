"""Every row of the table in docs/pitfalls.md: the mistake is made, and the result is compared with the page.

Each is made on a copy of a rendered dataset folder, ``flower_dataset`` in the current folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from pictures import encode
from PIL import Image

from mmflowers.checks.findings import Finding
from mmflowers.checks.run import check_config, check_testing, check_training
from mmflowers.engine.testing import test as run_test
from mmflowers.engine.training import TrainOptions, configure
from mmflowers.utils.errors import InputError

PAGE = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
TRAIN, VAL, DATA = Path("flower_dataset/train"), Path("flower_dataset/val"), Path("flower_dataset")
REFUSED, WARNED = "refused", "warned"


@TRANSFORMS.register_module()
class Wobble(BaseTransform):
    """Random, by a generator of its own and a name that says nothing."""

    generator = np.random.default_rng(0)

    def transform(self, results: dict) -> dict:
        results["img"] = np.roll(results["img"], int(self.generator.integers(1, 9)), axis=1)
        return results


@TRANSFORMS.register_module()
class Divide(BaseTransform):
    """Pixels of 0..1."""

    def transform(self, results: dict) -> dict:
        return {**results, "img": results["img"].astype(np.float32) / 255}


@TRANSFORMS.register_module()
class NeedsClass(BaseTransform):
    """Looks at the file's folder, which no test image has."""

    def transform(self, results: dict) -> dict:
        {"daisy": 0, "dandelion": 1, "rose": 2, "sunflower": 3, "tulip": 4}[Path(results["img_path"]).parent.name]
        return results


@TRANSFORMS.register_module()
class TurnChannels(BaseTransform):
    """What a loader of another library would give: RGB where BGR is meant."""

    def transform(self, results: dict) -> dict:
        results["img"] = np.ascontiguousarray(results["img"][..., ::-1])
        return results


# ------------------------------------------------------------------------------------------------- to make mistakes


def lines_of(split: str) -> list[str]:
    return (DATA / f"{split}.txt").read_text(encoding="utf-8").splitlines()


def write(split: str, lines: list[str]) -> None:
    (DATA / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit_list(split: str, change: Callable[[list[str]], list[str]]) -> Callable[[], None]:
    return lambda: write(split, change(lines_of(split)))


def add(split: str, path: str, label: int) -> None:
    write(split, sorted([*lines_of(split), f"{path} {label}"]))


def copy_into(target: str, label: int = 2, convert: Callable[[Image.Image], bytes] | None = None) -> None:
    """Let a val rose be in the folder again, as ``target``."""
    photo = sorted((VAL / "rose").iterdir())[0]
    path = DATA / target
    path.write_bytes(photo.read_bytes() if convert is None else convert(Image.open(photo).convert("RGB")))
    add(target.split("/")[0], target, label)


def encoded(format_: str, **options) -> Callable[[Image.Image], bytes]:
    return lambda image: encode(image, format_, **options)


def smaller(image: Image.Image) -> bytes:
    return encoded("JPEG", quality=90)(image.resize((image.width * 3 // 4, image.height * 3 // 4)))


def link_into_train() -> None:
    (TRAIN / "rose" / "link.jpg").symlink_to(sorted((VAL / "rose").iterdir())[0].resolve())
    add("train", "train/rose/link.jpg", 2)


def move_val_into_train(name: str | None = None, convert: Callable[[Image.Image], bytes] | None = None) -> None:
    """Exchange a train and a val daisy, as a new split does, under other names and formats if need be."""
    train, val = sorted((TRAIN / "daisy").iterdir())[0], sorted((VAL / "daisy").iterdir())[0]
    write("train", [line for line in lines_of("train") if f"/{train.name} " not in line])
    write("val", [line for line in lines_of("val") if f"/{val.name} " not in line])
    moved, there = VAL / "daisy" / (name or train.name), TRAIN / "daisy" / f"was_val_{val.name}"
    moved.write_bytes(train.read_bytes() if convert is None else convert(Image.open(train).convert("RGB")))
    train.unlink()
    val.rename(there)
    add("val", moved.relative_to(DATA).as_posix(), 0)
    add("train", there.relative_to(DATA).as_posix(), 0)


def replace_photo(split: str) -> None:
    photo = sorted((DATA / split / "tulip").iterdir())[0]
    photo.write_bytes(encoded("JPEG", quality=80)(Image.effect_noise((90, 90), 60).convert("RGB")))


def delete_half(split: str) -> None:
    kept = lines_of(split)[::2]
    for line in set(lines_of(split)) - set(kept):
        (DATA / line.rpartition(" ")[0]).unlink()
    write(split, kept)


def exchange_in_val() -> None:
    photo = sorted((VAL / "rose").iterdir())[0]
    photo.unlink()
    noise = Image.effect_noise((120, 120), 90).convert("RGB")
    photo.with_name("easy.jpg").write_bytes(encoded("JPEG", quality=90)(noise))
    relist("val")


def one_wide_photo() -> None:
    """All photos square, but one of val."""
    for path in DATA.glob("*/*/*.jpg"):
        with Image.open(path) as image:
            square = image.convert("RGB").crop((0, 0, 90, 90))
        path.write_bytes(encoded("JPEG", quality=95)(square))
    wide = sorted((VAL / "rose").iterdir())[0]
    wide.write_bytes(encoded("JPEG", quality=95)(Image.effect_noise((300, 90), 90).convert("RGB")))


def record_beside() -> None:
    """Weights as ``tools/train_torch.py`` leaves them: a bare state dict, and the record in last.pth."""
    Path("torch").mkdir()
    checkpoint = torch.load("best.pth", weights_only=True)
    torch.save(dict(checkpoint["state_dict"]), "torch/best_model.pth")
    torch.save({"trained_on": checkpoint["meta"]["trained_on"]}, "torch/last.pth")


def val(text: str) -> str:
    return f"val_dataloader = dict({text})"


def val_pipeline(
    *steps: str, resize: str = "dict(type='ResizeEdge', scale=48, edge='short')", crop: bool = True
) -> str:
    centre = ["dict(type='CenterCrop', crop_size=48)"] if crop else []
    inner = ", ".join(["dict(type='LoadImageFromFile')", resize, *centre, *steps, "dict(type='PackInputs')"])
    return val(f"dataset=dict(pipeline=[{inner}])")


def dataset(ann_file: str, pipeline: str = "test", kind: str = "FlowersDataset", more: str = "") -> str:
    where = f"data_root='flower_dataset', ann_file='{ann_file}', pipeline={{{{_base_.{pipeline}_pipeline}}}}"
    return f"dict(_delete_=True, type='{kind}', {where}{more})"


def wrapped(kind: str, inner: str, more: str = "") -> str:
    return f"dict(_delete_=True, type='{kind}', dataset={inner.replace('_delete_=True, ', '')}{more})"


def both_pipelines(step: str) -> str:
    crop = "dict(type='RandomResizedCrop', scale=48)"
    inner = f"[dict(type='LoadImageFromFile'), {crop}, {step}, dict(type='PackInputs')]"
    train = f"train_dataloader = dict(dataset=dict(pipeline={inner}))"
    return f"{val_pipeline(step)}\n{train}\ntest_dataloader = val_dataloader"


class Mistake(NamedTuple):
    """One way to a number that is false, or of something else than it says.

    Attributes:
        title: As docs/pitfalls.md calls it.
        result: Whether mmflowers refuses it or warns.
        words: Of the message.
        config: Lines of a config above the tiny one.
        make: Changes the dataset folder.
        mode: "train", "resume" or "test"; the latter two of a run on the folder as it was.
        options: ``--cfg-options``.
        lines: Of the config, when testing with a config of its own.
        weights: What the training starts from.
    """

    title: str
    result: str
    words: str
    config: str = ""
    make: Callable[[], object] | None = None
    mode: str = "train"
    options: tuple[str, ...] = ()
    weights: str | None = "none"


def option(key: str, value: object) -> tuple[str, ...]:
    return (f"{key}={value}",)


MISTAKES = [
    # Which list a loader reads
    Mistake(
        "The validation loader reads `train.txt`",
        REFUSED,
        "reads 40 photos of train.txt",
        options=option("val_dataloader.dataset.ann_file", "train.txt"),
    ),
    Mistake(
        "The training loader reads `val.txt`",
        REFUSED,
        "reads 10 photos of val.txt",
        options=option("train_dataloader.dataset.ann_file", "val.txt"),
    ),
    Mistake(
        "The two lists are swapped in the config",
        REFUSED,
        "reads 10 photos of val.txt",
        options=("train_dataloader.dataset.ann_file=val.txt", "val_dataloader.dataset.ann_file=train.txt"),
    ),
    Mistake(
        "The test side of a training config reads `train.txt`",
        REFUSED,
        "test_dataloader.dataset: reads 40 photos of train.txt",
        options=option("test_dataloader.dataset.ann_file", "train.txt"),
    ),
    Mistake(
        "The validation loader reads `test.txt`, which is to stay unseen",
        REFUSED,
        "reads 5 photos of test.txt",
        make=lambda: (write("test", lines_of("val")[::2]), write("val", lines_of("val")[1::2])),
        options=option("val_dataloader.dataset.ann_file", "test.txt"),
    ),
    Mistake(
        "A list under a harmless name holds the training photos",
        REFUSED,
        "reads 40 photos of train.txt",
        make=lambda: shutil.copy(DATA / "train.txt", DATA / "holdout.txt"),
        options=option("val_dataloader.dataset.ann_file", "holdout.txt"),
    ),
    Mistake(
        "Training on train and val joined (`ConcatDataset`)",
        REFUSED,
        "reads 10 photos of val.txt",
        config="train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=["
        + ", ".join(dataset(f"{s}.txt", "train").replace("_delete_=True, ", "") for s in ("train", "val"))
        + "]))",
    ),
    Mistake(
        "A fold of the training list for validation, the whole list for training",
        REFUSED,
        "reads 8 photos of train.txt",
        config=f"val_dataloader = dict(dataset={wrapped('KFoldDataset', dataset('train.txt'), ', test_mode=True')})",
    ),
    Mistake(
        "A list name with a typing error",
        REFUSED,
        "flower_dataset has no vall.txt",
        options=option("val_dataloader.dataset.ann_file", "vall.txt"),
    ),
    Mistake(
        "Validation on photos that are on no list",
        REFUSED,
        "reads 1 photo that is on no list of flower_dataset",
        make=lambda: (
            shutil.copy(sorted((VAL / "rose").iterdir())[0], VAL / "rose" / "x.jpg"),
            (DATA / "more.txt").write_text("val/rose/x.jpg 2\n" + "\n".join(lines_of("val"))),
        ),
        options=option("val_dataloader.dataset.ann_file", "more.txt"),
    ),
    Mistake(
        "A loader with other labels than the list has",
        REFUSED,
        "other labels than val.txt",
        config="val_dataloader = dict(dataset="
        + dataset("swapped.txt", kind="CustomDataset", more=", metainfo=dict(classes=sorted(CLASSES))")
        + ")",
        make=lambda: (DATA / "swapped.txt").write_text(
            "".join(f"{line[:-1]}{(int(line[-1]) + 1) % 5}\n" for line in lines_of("val"))
        ),
    ),
    # Counted twice, or left out
    Mistake(
        "Validation counts photos several times (`RepeatDataset`)",
        REFUSED,
        "counts 10 photos more than once",
        config=f"val_dataloader = dict(dataset={wrapped('RepeatDataset', dataset('val.txt'), ', times=2')})",
    ),
    Mistake(
        "Validation counts photos several times (`ClassBalancedDataset`)",
        REFUSED,
        "more than once",
        config="val_dataloader = dict(dataset="
        + wrapped("ClassBalancedDataset", dataset("val.txt"), ", oversample_thr=0.9")
        + ")",
    ),
    Mistake(
        "Validation counts photos several times (a sampler that repeats)",
        REFUSED,
        "more than once",
        config=val("sampler=dict(_delete_=True, type='RepeatAugSampler', num_repeats=3)"),
    ),
    Mistake(
        "A validation sampler that never ends",
        REFUSED,
        "more than once",
        config=val("sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=False)"),
    ),
    Mistake(
        "Validation on a part of the list (`indices`)",
        WARNED,
        "counts 7 of the 10 photos of val.txt",
        options=option("val_dataloader.dataset.indices", 7),
    ),
    Mistake(
        "Validation without its last batch (`drop_last`)",
        WARNED,
        "counts 8 of the 10 photos of val.txt",
        options=option("val_dataloader.drop_last", True),
    ),
    Mistake(
        "Validation on the first batches (`num_batch_per_epoch`)",
        WARNED,
        "counts 8 of the 10 photos of val.txt",
        options=option("val_dataloader.num_batch_per_epoch", 1),
    ),
    Mistake(
        "Validation whose only batch is dropped (`drop_last`)",
        REFUSED,
        "counts no photos",
        options=("val_dataloader.drop_last=True", "val_dataloader.batch_size=11"),
    ),
    Mistake(
        "More batches than the list has (`num_batch_per_epoch`)",
        REFUSED,
        "requests sample 16 of a dataset of 10",
        options=option("val_dataloader.num_batch_per_epoch", 2),
    ),
    Mistake(
        "The test side of a training config on a part of the list",
        WARNED,
        "test_dataloader: counts 7 of the 10 photos of val.txt",
        options=option("test_dataloader.dataset.indices", 7),
    ),
    Mistake(
        "Training that always drops the same photos (`drop_last` without shuffling)",
        WARNED,
        "trains on 36 of the 40 photos of train.txt",
        config="train_dataloader = dict(batch_size=9, drop_last=True, sampler=dict(shuffle=False))",
    ),
    Mistake(
        "Training on a part of the list",
        WARNED,
        "trains on 12 of the 40 photos of train.txt",
        options=option("train_dataloader.dataset.indices", 12),
    ),
    Mistake(
        "A row twice in a list",
        REFUSED,
        "val.txt lists val/daisy/",
        make=edit_list("val", lambda lines: [lines[0], *lines]),
    ),
    Mistake(
        "A row again as `val//x`",
        REFUSED,
        "twice",
        make=edit_list("val", lambda lines: [lines[0].replace("val/", "val//"), *lines]),
    ),
    Mistake(
        "A row again as `val/./x`",
        REFUSED,
        "twice",
        make=edit_list("val", lambda lines: [*lines, lines[0].replace("val/", "val/./")]),
    ),
    Mistake(
        "A photo twice in val under two names",
        REFUSED,
        "val.txt lists 1 photo twice under other names",
        make=lambda: copy_into("val/rose/again.jpg"),
    ),
    Mistake(
        "A photo twice in train under two names",
        WARNED,
        "train.txt lists 1 photo twice under other names",
        make=lambda: (
            shutil.copy(sorted((TRAIN / "rose").iterdir())[0], TRAIN / "rose" / "again.jpg"),
            add("train", "train/rose/again.jpg", 2),
        ),
    ),
    Mistake(
        "One photo in two classes of a list",
        REFUSED,
        "val.txt lists 1 photo in two classes",
        make=lambda: copy_into("val/tulip/again.jpg", 4),
    ),
    Mistake(
        "Half of the val photos deleted with their rows",
        WARNED,
        "5 of the 10 photos prepared for val are no longer listed",
        make=lambda: delete_half("val"),
    ),
    Mistake(
        "Training photos deleted with their rows",
        WARNED,
        "20 of the 40 photos prepared for train are no longer listed",
        make=lambda: delete_half("train"),
    ),
    Mistake(
        "Photos added to val by hand",
        WARNED,
        "val.txt lists 1 photo that the preparation didn't list",
        make=lambda: (
            (VAL / "rose" / "new.jpg").write_bytes(
                encoded("JPEG", quality=90)(Image.effect_noise((120, 120), 90).convert("RGB"))
            ),
            add("val", "val/rose/new.jpg", 2),
        ),
    ),
    Mistake(
        "Difficult val photos exchanged for others, as many as before",
        WARNED,
        "no longer listed",
        make=lambda: exchange_in_val(),
    ),
    Mistake(
        "A val photo moved to another class since the preparation",
        WARNED,
        "1 photo of val.txt changed class since the preparation",
        make=lambda: (
            shutil.move(sorted((VAL / "tulip").iterdir())[0], VAL / "rose" / "moved.jpg"),
            relist("val"),
        ),
    ),
    Mistake(
        "A training sampler that leaves photos out",
        WARNED,
        "trains on 8 of the 40 photos of train.txt",
        options=("train_dataloader.sampler.shuffle=False", "train_dataloader.num_batch_per_epoch=1"),
    ),
    Mistake(
        "A photo exchanged under its name since the preparation",
        WARNED,
        "1 photo of val changed since the preparation",
        make=lambda: replace_photo("val"),
    ),
    Mistake(
        "Photos of train and val exchanged by hand, under new names",
        WARNED,
        "val.txt lists 1 photo that the preparation didn't list",
        make=lambda: move_val_into_train("x.jpg"),
    ),
    Mistake(
        "A photo moved to another class since the preparation",
        WARNED,
        "1 photo of train.txt changed class since the preparation",
        make=lambda: (shutil.move(sorted((TRAIN / "rose").iterdir())[0], TRAIN / "tulip" / "0.jpg"), relist("train")),
    ),
    Mistake(
        "A class without a photo in val",
        REFUSED,
        "has no photo of rose",
        make=edit_list("val", lambda lines: [line for line in lines if "/rose/" not in line]),
    ),
    # Copies on both sides
    Mistake(
        "A val photo in train under another name",
        REFUSED,
        "of val is in train too",
        make=lambda: copy_into("train/rose/x.jpg"),
    ),
    Mistake(
        "A val photo in train in another class",
        REFUSED,
        "of val is in train too",
        make=lambda: copy_into("train/tulip/x.jpg", 4),
    ),
    Mistake(
        "A val photo in train as a PNG",
        REFUSED,
        "look",
        make=lambda: copy_into("train/rose/x.png", convert=encoded("PNG")),
    ),
    Mistake(
        "A val photo in train, re-encoded at a lower JPEG quality",
        REFUSED,
        "re-encoded or resized",
        make=lambda: copy_into("train/rose/x.jpg", convert=encoded("JPEG", quality=60)),
    ),
    Mistake(
        "A val photo in train at another size",
        REFUSED,
        "re-encoded or resized",
        make=lambda: copy_into("train/rose/x.jpg", convert=smaller),
    ),
    Mistake("A link from train to a val photo", REFUSED, "of val is in train too", make=link_into_train),
    Mistake(
        "A test photo in train",
        REFUSED,
        "of test is in train too",
        make=lambda: (write("test", lines_of("val")), copy_into("train/rose/x.jpg")),
    ),
    # The same photos throughout
    Mistake(
        "Weights that were trained on photos of val (a new split)",
        REFUSED,
        "was trained on 1 of the 10 photos of val",
        make=move_val_into_train,
        weights="best.pth",
    ),
    Mistake(
        "… that have other names now",
        REFUSED,
        "was trained on 1 of the 10 photos of val",
        make=lambda: move_val_into_train("x.jpg"),
        weights="best.pth",
    ),
    Mistake(
        "… that have another format now",
        REFUSED,
        "was trained on photos that look like 1 of the 10 photos of val",
        make=lambda: move_val_into_train("x.png", encoded("PNG")),
        weights="best.pth",
    ),
    Mistake(
        "… named by the model's `init_cfg`",
        REFUSED,
        "was trained on 1 of the 10 photos of val",
        config="load_from = None\nmodel = dict(backbone=dict(init_cfg=dict("
        "type='Pretrained', checkpoint='best.pth', prefix='backbone.')))",
        weights=None,
        make=move_val_into_train,
    ),
    Mistake(
        "A test on photos that the run was trained on",
        REFUSED,
        "was trained on 1 of the 10 photos of val",
        make=lambda: move_val_into_train("x.jpg"),
        mode="test val",
    ),
    Mistake(
        "… in another format",
        REFUSED,
        "was trained on photos that look like 1 of the 10 photos of val",
        make=lambda: move_val_into_train("x.webp", encoded("WEBP", quality=90)),
        mode="test val",
    ),
    Mistake(
        "Resumed after a training photo was exchanged under its name",
        REFUSED,
        "train had 40 photos and has 40: 1 gone, 1 new",
        make=lambda: replace_photo("train"),
        mode="resume",
    ),
    Mistake(
        "Resumed after a val photo was exchanged under its name",
        REFUSED,
        "val had 10 photos and has 10: 1 gone, 1 new",
        make=lambda: replace_photo("val"),
        mode="resume",
    ),
    Mistake(
        "Resumed with a shorter training list",
        REFUSED,
        "train had 40 photos and has 35: 5 gone",
        make=edit_list("train", lambda lines: [line for n, line in enumerate(lines) if n % 8]),
        mode="resume",
    ),
    Mistake(
        "Resumed after photos moved from train into val under new names",
        REFUSED,
        "1 moved here from another split",
        make=lambda: move_val_into_train("x.jpg"),
        mode="resume",
    ),
    Mistake(
        "Resumed with a val list padded with copies",
        REFUSED,
        "1 counted more than once",
        make=lambda: copy_into("val/rose/again.jpg"),
        mode="resume",
    ),
    Mistake(
        "Resumed after photos changed their class",
        REFUSED,
        "with other labels",
        make=lambda: (
            shutil.move(sorted((TRAIN / "rose").iterdir())[0], TRAIN / "tulip" / "0.jpg"),
            shutil.move(sorted((TRAIN / "tulip").iterdir())[1], TRAIN / "rose" / "0.jpg"),
            relist("train"),
        ),
        mode="resume",
    ),
    Mistake(
        "Resumed with another validation pipeline, so that epochs can't be compared",
        REFUSED,
        "val_dataloader.dataset.pipeline.1.scale was 48, now 80",
        options=option("val_dataloader.dataset.pipeline.1.scale", 80),
        mode="resume",
    ),
    Mistake(
        "Resumed with another metric for the best epoch",
        REFUSED,
        "save_best was",
        options=option("default_hooks.checkpoint.save_best", "accuracy/top3"),
        mode="resume",
    ),
    Mistake(
        "A test split with the photos that chose the best epoch",
        REFUSED,
        "was chosen on 10 of the 10 photos of test",
        make=lambda: write("test", lines_of("val")),
        mode="test test",
    ),
    Mistake(
        "Weights of `train_torch.py`, whose record lies beside them, on a new split",
        REFUSED,
        "was trained on 1 of the 10 photos of val",
        make=lambda: (record_beside(), move_val_into_train("x.jpg")),
        weights="torch/best_model.pth",
    ),
    Mistake(
        "Resumed on a part of the photos, by the config",
        REFUSED,
        "train had 40 photos",
        options=option("train_dataloader.dataset.indices", 12),
        mode="resume",
    ),
    # The same kind of picture
    Mistake(
        "Validation mirrors at random",
        REFUSED,
        "RandomFlip: random",
        config=val_pipeline("dict(type='RandomFlip', prob=0.5)"),
    ),
    Mistake(
        "Validation mirrors one photo in fifty",
        REFUSED,
        "RandomFlip: random",
        config=val_pipeline("dict(type='RandomFlip', prob=0.02)"),
    ),
    Mistake(
        "Validation changes colours at random",
        REFUSED,
        "ColorJitter: random",
        config=val_pipeline("dict(type='ColorJitter', brightness=0.4)"),
    ),
    Mistake(
        "A random transform of one's own in validation, whatever its name",
        REFUSED,
        "Wobble: random",
        config=val_pipeline("dict(type='Wobble')"),
    ),
    Mistake(
        "A random step that shows on photos of unusual shape only",
        REFUSED,
        "RandomCrop: random",
        config=val_pipeline("dict(type='RandomCrop', crop_size=48)", crop=False),
        make=lambda: one_wide_photo(),
    ),
    Mistake(
        "A pipeline that fails on the test images, so that nothing is known of it",
        WARNED,
        "its output can't be compared: it fails on a test image: KeyError",
        config=val_pipeline("dict(type='NeedsClass')"),
    ),
    Mistake(
        "Validation mirrors every photo",
        WARNED,
        "mirrors every photo or turns it upside down",
        config=val_pipeline("dict(type='RandomFlip', prob=1.0)"),
    ),
    Mistake(
        "Training and test pipeline swapped",
        REFUSED,
        "pipelines are swapped",
        config="val_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))\n"
        "train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))",
    ),
    Mistake(
        "Grey photos in validation alone",
        REFUSED,
        "outputs grey images, train_dataloader doesn't",
        config=val_pipeline("dict(type='RandomGrayscale', prob=1.0, keep_channels=True)"),
    ),
    Mistake(
        "RGB in validation, BGR in training",
        REFUSED,
        "outputs channels as RGB, train_dataloader as BGR",
        config=val_pipeline("dict(type='TurnChannels')"),
    ),
    Mistake(
        "Pixels of 0..1 in validation, of 0..255 in training",
        REFUSED,
        "outputs values from",
        config=val_pipeline("dict(type='NumpyToPIL')", "dict(type='torchvision/ToTensor')"),
    ),
    Mistake(
        "Validation normalises once more",
        REFUSED,
        "outputs values from",
        config=val_pipeline("dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])"),
    ),
    Mistake(
        "Validation squashes photos, training crops",
        WARNED,
        "stretches photos by a factor of 1.33",
        config=val_pipeline(resize="dict(type='Resize', scale=(48, 48))"),
    ),
    Mistake(
        "A centre crop without a resize: a corner of each photo",
        WARNED,
        "of a photo of",
        config=val_pipeline(resize="dict(type='Resize', scale=(480, 360))"),
    ),
    Mistake(
        "Validation at another scale than training",
        WARNED,
        "times as large as train_dataloader",
        config="val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='ResizeEdge', scale=160, edge='short'), dict(type='CenterCrop', crop_size=160), "
        "dict(type='PackInputs')]))",
    ),
    Mistake(
        "Training that augments nothing",
        WARNED,
        "has no augmentation",
        config="train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))",
    ),
    Mistake(
        "A test with another mean than the run's",
        REFUSED,
        "data_preprocessor.mean.0: 100.0, but the run was trained with",
        options=option("data_preprocessor.mean", "[100.0,116.28,103.53]"),
        mode="test val",
    ),
    Mistake(
        "A test with another channel order than the run's",
        REFUSED,
        "data_preprocessor.to_rgb: false, but the run was trained with true",
        options=option("data_preprocessor.to_rgb", False),
        mode="test val",
    ),
    Mistake(
        "A test whose pipeline turns the channels",
        REFUSED,
        "outputs channels as RGB, the run's validation as BGR",
        mode="test turned",
    ),
    Mistake(
        "A test that squashes photos, after a validation that didn't",
        WARNED,
        "stretches photos by a factor of 1.33, the run's validation doesn't",
        mode="test squashed",
    ),
    Mistake(
        "Pixels scaled by a transform of one's own, and normalised as if they weren't",
        REFUSED,
        "the pipeline already scales pixels",
        config=both_pipelines("dict(type='Divide')"),
    ),
    Mistake(
        "Channels turned by the pipeline and again by `to_rgb`",
        WARNED,
        "the pipeline outputs RGB, which to_rgb converts to BGR",
        config=both_pipelines("dict(type='TurnChannels')"),
    ),
    Mistake(
        "Test-time augmentation that draws at random",
        REFUSED,
        "tta_pipeline: RandomResizedCrop",
        mode="test tta",
    ),
    Mistake(
        "A mean for pixels of 0..1 on pixels of 0..255",
        REFUSED,
        "is for pixels in 0..1",
        config="data_preprocessor = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ),
    # What is counted as right, and which epoch is the best
    Mistake(
        "A threshold that counts low-confidence predictions as wrong (`thrs`)",
        REFUSED,
        "counts predictions with a smaller score as wrong",
        config="val_evaluator = dict(thrs=0.5)",
    ),
    Mistake(
        "… under the metric's full name",
        REFUSED,
        "counts predictions with a smaller score as wrong",
        config="val_evaluator = dict(type='mmpretrain.Accuracy', thrs=0.5)",
    ),
    Mistake(
        "Class names in `metainfo` that aren't those of the list",
        REFUSED,
        "metainfo.classes differ from classes.txt",
        config="val_dataloader = dict(dataset=dict(metainfo=dict(classes=CLASSES[::-1])))",
    ),
    Mistake(
        "Top-5 of five classes",
        REFUSED,
        "top-5 of 5 classes is always 100 %",
        config="val_evaluator = dict(topk=(1, 5))",
    ),
    Mistake(
        "The best epoch chosen by top-3 of five classes",
        REFUSED,
        "is high for nearly any network",
        config="val_evaluator = dict(topk=(1, 3))\ntest_evaluator = val_evaluator\n"
        "default_hooks = dict(checkpoint=dict(save_best='accuracy/top3'))",
    ),
    Mistake(
        "A validation interval beyond the last epoch",
        WARNED,
        "best.pth is the last",
        config="train_cfg = dict(val_interval=30)",
    ),
    Mistake(
        "A validation that begins after the last epoch",
        REFUSED,
        "nothing is validated",
        config="train_cfg = dict(val_begin=30)",
    ),
]


SHOWN = {  # whose message the page quotes
    "The validation loader reads `train.txt`",
    "The training loader reads `val.txt`",
    "Validation counts photos several times (`RepeatDataset`)",
    "Validation without its last batch (`drop_last`)",
    "A photo twice in val under two names",
    "One photo in two classes of a list",
    "Half of the val photos deleted with their rows",
    "A photo exchanged under its name since the preparation",
    "A val photo in train as a PNG",
    "… that have another format now",
    "Resumed after photos moved from train into val under new names",
    "RGB in validation, BGR in training",
    "Grey photos in validation alone",
    "Pixels of 0..1 in validation, of 0..255 in training",
    "A test with another channel order than the run's",
    "Validation squashes photos, training crops",
    "A threshold that counts low-confidence predictions as wrong (`thrs`)",
    "The best epoch chosen by top-3 of five classes",
    "A validation interval beyond the last epoch",
    "A validation that begins after the last epoch",
}


def relist(split: str) -> None:
    names = sorted(path.name for path in (DATA / split).iterdir())
    write(
        split,
        [f"{p.relative_to(DATA).as_posix()} {names.index(p.parent.name)}" for p in sorted((DATA / split).glob("*/*"))],
    )


# ----------------------------------------------------------------------------------------------------- to find them


@pytest.fixture
def here(dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(dataset, tmp_path / "flower_dataset")
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    shutil.copy(trained / "best.pth", tmp_path / "best.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def findings_of(mistake: Mistake, tiny_config: Path) -> list[Finding]:
    classes = (DATA / "classes.txt").read_text().split()
    text = mistake.config.replace("CLASSES", repr(classes))
    Path("mine.py").write_text(f"_base_ = {str(tiny_config)!r}\n{text}\n", encoding="utf-8")
    mode, _, split = mistake.mode.partition(" ")
    if mode == "train":
        return check_config("mine.py", weights=mistake.weights, cfg_options=mistake.options)
    if mode == "resume":
        problems: list = []
        resumed = "run/last.pth"
        config = configure(
            TrainOptions("mine.py", resume=resumed, work_dir="run", cfg_options=mistake.options, data=DATA), problems
        )
        return check_training(config, problems, options=mistake.options)
    found: list[Finding] = []

    def before(config, problems) -> None:
        if split == "squashed":
            steps = config.test_dataloader.dataset.pipeline
            squash = dict(type="Resize", scale=(48, 48))
            config.test_dataloader.dataset.pipeline = [steps[0], squash, steps[-1]]
        if split == "turned":
            steps = config.test_dataloader.dataset.pipeline
            config.test_dataloader.dataset.pipeline = [*steps[:1], dict(type="TurnChannels"), *steps[1:]]
        if split == "tta":
            crop = dict(type="RandomResizedCrop", scale=48)
            pack = dict(type="PackInputs")
            config.tta_pipeline = [config.test_dataloader.dataset.pipeline[0], crop, pack]
        named = "test" if split == "test" else "val"
        found.extend(check_testing(config, problems, split=named, tta=split == "tta"))
        raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        run_test(
            None,
            "run/best.pth",
            data=DATA,
            split="test" if split == "test" else "val",
            cfg_options=mistake.options,
            before=before,
        )
    return found


# Every third in `make test`, all in `make test` and `make test-slow` together.
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(mistake, id=mistake.title, marks=[pytest.mark.slow] if number % 3 else [])
        for number, mistake in enumerate(MISTAKES)
    ],
)
def test_a_silent_mistake_is_found(mistake: Mistake, here: Path, tiny_config: Path) -> None:
    if mistake.make is not None:
        mistake.make()
    found = findings_of(mistake, tiny_config)
    level = {REFUSED: "error", WARNED: "warning"}[mistake.result]
    lines = [f"{level}: {one.where}: {one.what} · hint: {one.hint}" for one in found if one.level == level]
    matching = [line for line in lines if mistake.words in line]
    assert matching, (mistake.words, found)
    if mistake.title in SHOWN:
        assert matching[0] in PAGE, matching[0]
    if mistake.result == WARNED:
        assert not [one for one in found if one.level == "error"], found


def test_the_page_has_a_row_for_every_mistake_and_no_other() -> None:
    rows = re.findall(r"^\| (.+?) \| (refused|warned) \|$", PAGE, re.MULTILINE)
    assert rows == [(mistake.title, mistake.result) for mistake in MISTAKES]
    assert len(rows) >= 60


def test_a_folder_and_a_run_that_are_in_order_give_no_finding(here: Path, tiny_config: Path) -> None:
    for mode in ("train", "resume", "test val"):
        plain = Mistake("", "", "", mode=mode, weights="best.pth" if mode == "train" else "none")
        assert findings_of(plain, tiny_config) == [], mode
