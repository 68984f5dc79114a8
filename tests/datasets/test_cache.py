"""Photos decoded once: the same pixels, never stale, never half there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

import mmflowers.engine  # noqa: F401  registers
from mmflowers.datasets.cache import cached_array, in_threads
from mmflowers.datasets.flowers import FlowersDataset
from mmflowers.errors import InputError

TEST = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=72, edge="short", backend="pillow"),
    dict(type="CenterCrop", crop_size=64),
    dict(type="PackInputs"),
]
TRAIN = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=64, backend="pillow"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "flowers"))


def cached(folder: Path, split: str, pipeline: list[dict]) -> FlowersDataset:
    return FlowersDataset(data_root=str(folder), ann_file=f"{split}.txt", pipeline=pipeline, cache=True)


def places(epoch: int, *indices: int) -> list[tuple[int, int, int]]:
    return [(epoch, 0, index) for index in indices]


def test_the_network_gets_the_pixels_of_the_test_pipeline(folder: Path) -> None:
    plain = FlowersDataset(data_root=str(folder), ann_file="val.txt", pipeline=TEST)
    batch = cached(folder, "val", TEST).batch(places(0, 3, 0, 7), seed=0)
    assert batch["inputs"].dtype == torch.uint8 and "augment" not in batch
    for got, sample, index in zip(batch["inputs"], batch["data_samples"], (3, 0, 7), strict=True):
        expected = plain[index]
        assert torch.equal(got, expected["inputs"])
        assert torch.equal(sample.gt_label, expected["data_samples"].gt_label)
        assert sample.img_path == expected["data_samples"].img_path


def test_what_a_photo_becomes_follows_from_seed_epoch_and_photo(folder: Path) -> None:
    dataset = cached(folder, "train", TRAIN)

    def seen(index: int, among: tuple[int, ...], epoch: int = 0, seed: int = 0) -> torch.Tensor:
        batch = dataset.batch(places(epoch, *among), seed)
        return batch["augment"](batch["inputs"])[among.index(index)]

    here = seen(5, (1, 5, 9))
    assert here.shape == (3, 64, 64)
    assert torch.equal(here, seen(5, (5,)))
    assert not torch.equal(here, seen(5, (5,), epoch=1))
    assert not torch.equal(here, seen(5, (5,), seed=1))
    part = dataset.batch(places(0, 1, 5, 9), 0)
    assert torch.equal(part["augment"][1:](part["inputs"][1:])[0], here)


def test_pixels_are_those_of_single_photos_on_average(folder: Path) -> None:
    plain = FlowersDataset(data_root=str(folder), ann_file="train.txt", pipeline=TRAIN)
    dataset = cached(folder, "train", TRAIN)
    everything = range(len(dataset))
    np.random.seed(0)
    theirs = torch.stack([plain[index]["inputs"] for _ in range(12) for index in everything]).float()
    batches = [dataset.batch(places(epoch, *everything), 0) for epoch in range(12)]
    ours = torch.cat([batch["augment"](batch["inputs"]) for batch in batches]).float()
    for statistic in (lambda x: x.mean((0, 2, 3)), lambda x: x.std((2, 3)).mean(0)):
        torch.testing.assert_close(statistic(ours), statistic(theirs), rtol=0.03, atol=1.5)
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean().item() for x in (ours, theirs)]
    assert abs(detail[0] / detail[1] - 1) < 0.15  # nearly as sharp: small crops come from a photo of 96 px


def test_a_photo_that_changed_is_decoded_again_and_the_old_cache_goes(folder: Path) -> None:
    cache = Path(os.environ["MMFLOWERS_CACHE"])
    before = cached(folder, "val", TEST).batch(places(0, 0), 0)["inputs"]
    files = set(cache.glob("*.npy"))
    assert torch.equal(cached(folder, "val", TEST).batch(places(0, 0), 0)["inputs"], before)
    assert set(cache.glob("*.npy")) == files
    photos = sorted((folder / "val").rglob("*.jpg"))
    shutil.copy(photos[-1], photos[0])
    after = cached(folder, "val", TEST).batch(places(0, 0), 0)["inputs"]
    assert not torch.equal(after, before)
    assert len(set(cache.glob("*.npy"))) == len(files) and set(cache.glob("*.npy")) != files


def test_another_size_is_another_cache(folder: Path) -> None:
    other = [TEST[0], TEST[1], dict(type="CenterCrop", crop_size=32), TEST[3]]
    assert cached(folder, "val", TEST).batch(places(0, 0), 0)["inputs"].shape[-1] == 64
    assert cached(folder, "val", other).batch(places(0, 0), 0)["inputs"].shape[-1] == 32


def test_a_disk_that_takes_nothing_costs_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cached(folder, "val", TEST).batch(places(0, 2), 0)["inputs"]
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MMFLOWERS_CACHE", str(tmp_path / "file" / "cache"))
    assert torch.equal(cached(folder, "val", TEST).batch(places(0, 2), 0)["inputs"], expected)


def test_every_damaged_photo_is_named_and_nothing_stays_behind(folder: Path) -> None:
    cache = Path(os.environ["MMFLOWERS_CACHE"])
    before = set(cache.iterdir()) if cache.is_dir() else set()
    damaged = sorted((folder / "val").rglob("*.jpg"))[1:3]
    for path in damaged:
        path.write_bytes(b"not a photo")
    with pytest.raises(InputError) as raised:
        cached(folder, "val", TEST).batch(places(0, 0), 0)
    assert [any(path.name in problem.what for problem in raised.value.problems) for path in damaged] == [True, True]
    assert set(cache.iterdir()) == before


def test_photos_that_come_out_in_different_sizes_are_refused(folder: Path) -> None:
    from PIL import Image

    path = sorted((folder / "val").rglob("*.jpg"))[4]
    Image.new("RGB", (200, 100)).save(path)
    with pytest.raises(InputError, match="of different sizes"):
        cached(folder, "val", [TEST[0], TEST[1], TEST[3]]).batch(places(0, 0), 0)


def test_rows_come_in_order_whatever_takes_long() -> None:
    import time

    def make(number: int) -> np.ndarray:
        time.sleep(0.02 if number % 7 == 0 else 0)
        return np.array([number])

    assert [int(row[0]) for row in in_threads(make, 50)] == list(range(50))
    assert list(in_threads(make, 0)) == []


def test_a_stop_in_the_middle_leaves_no_cache() -> None:
    def rows():
        yield np.zeros(4, np.uint8)
        raise KeyboardInterrupt

    cache = Path(os.environ["MMFLOWERS_CACHE"])
    with pytest.raises(KeyboardInterrupt):
        cached_array("stopped", 0, (2, 4), rows)
    assert not list(cache.glob(".*")) and not [path for path in cache.glob("*.npy") if path.stat().st_size < 100]
    assert cached_array("stopped", 0, (2, 4), lambda: [np.ones(4, np.uint8)] * 2).sum() == 8


def test_workers_of_a_loader_see_the_same_pixels(folder: Path) -> None:
    from mmflowers.engine.runner import FlowersRunner

    def batches(workers: int) -> list[torch.Tensor]:
        dataset = dict(type="FlowersDataset", data_root=str(folder), ann_file="train.txt", pipeline=TRAIN, cache=True)
        sampler = dict(type="DefaultSampler", shuffle=True)
        loader = dict(dataset=dataset, sampler=sampler, batch_size=16, num_workers=workers)
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            return [b["augment"](b["inputs"]) for b in FlowersRunner.build_dataloader(loader, seed=3)]

    for mine, theirs in zip(batches(2), batches(0), strict=True):
        assert torch.equal(mine, theirs)
