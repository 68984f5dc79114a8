"""Photos decoded once: the same pixels, never stale, never half there."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

import mmflowers.engine  # noqa: F401  registers
from mmflowers.datasets import cache as cache_module
from mmflowers.datasets.cache import cached_array, in_threads
from mmflowers.datasets.flowers import FlowersDataset
from mmflowers.datasets.seeded import Draw, SeededDataset
from mmflowers.utils.errors import InputError

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


ERASING = [TRAIN[0], dict(type="RandomErasing", erase_prob=1.0), TEST[1], TEST[3]]  # writes into the decoded photo


def erased(dataset: FlowersDataset) -> list[torch.Tensor]:
    """What two passes over a dataset give, photo by photo."""
    seeded = SeededDataset(dataset, seed=0)
    return [seeded[Draw(epoch, 0, 0, index)]["inputs"] for epoch in range(2) for index in range(len(dataset))]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "arrays"), [("1", 1), ("1e-6", 0)])
def test_photos_that_are_augmented_one_by_one_are_decoded_once_where_they_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, arrays: int
) -> None:
    monkeypatch.setenv("MMFLOWERS_CACHE", str(tmp_path / "decoded"))
    monkeypatch.setenv("MMFLOWERS_CACHE_GB", limit)
    plain = FlowersDataset(data_root=str(folder), ann_file="val.txt", pipeline=ERASING)
    dataset = cached(folder, "val", ERASING)
    assert dataset.unbatched == ["RandomErasing", "ResizeEdge"] and not dataset.gives_batches
    expected = erased(plain)
    assert all(map(torch.equal, erased(dataset), expected))
    assert len(list((tmp_path / "decoded").glob("*.npy"))) == arrays
    if arrays:  # nothing is decoded any more
        monkeypatch.setattr(type(dataset.pipeline.transforms[0]), "transform", None)
        assert all(map(torch.equal, erased(cached(folder, "val", ERASING)), expected))
        assert len(pickle.dumps(dataset)) < sum(image.nbytes for image in dataset._decoded)


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


def test_recipes_of_several_sizes_keep_their_arrays_side_by_side(folder: Path) -> None:
    cache = Path(os.environ["MMFLOWERS_CACHE"])
    other = [TEST[0], TEST[1], dict(type="CenterCrop", crop_size=32), TEST[3]]

    def edges() -> list[int]:
        return [cached(folder, "val", steps).batch(places(0, 0), 0)["inputs"].shape[-1] for steps in (TEST, other)]

    before = set(cache.glob("*.npy"))
    assert edges() == [64, 32]
    made = {path: path.stat().st_ino for path in set(cache.glob("*.npy")) - before}
    assert len(made) == 2
    assert edges() == [64, 32]
    assert {path: path.stat().st_ino for path in set(cache.glob("*.npy")) - before} == made


def ones(identity: str, recipe: int, size: int = 400) -> None:
    assert cached_array(identity, 0, recipe, (size,), lambda: [np.ones(size, np.uint8)]).sum() == size
    cache_module._opened.clear()  # as a process that has ended


def test_the_least_recently_used_arrays_go_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFLOWERS_CACHE", str(tmp_path))
    monkeypatch.setenv("MMFLOWERS_CACHE_GB", "1.4e-6")  # two arrays of 400 bytes and their headers
    monkeypatch.setattr(cache_module, "_opened", set())
    kept: dict[int, Path] = {}
    for recipe in (1, 2):
        before = set(tmp_path.glob("*.npy"))
        ones("flowers", recipe)
        (kept[recipe],) = set(tmp_path.glob("*.npy")) - before
        os.utime(kept[recipe], (recipe, recipe))
    ones("flowers", 1)  # is used again, so 2 is the older one
    ones("others", 3)
    assert kept[1].exists() and not kept[2].exists() and len(list(tmp_path.glob("*.npy"))) == 2
    ones("others", 4, size=10_000)  # is needed, so it is kept though it is larger than the limit
    assert not kept[1].exists() and len(list(tmp_path.glob("*.npy"))) == 1


def test_what_this_process_uses_stays_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFLOWERS_CACHE", str(tmp_path))
    monkeypatch.setenv("MMFLOWERS_CACHE_GB", "0")
    for split in ("train", "val"):
        cached_array(split, 0, 0, (400,), lambda: [np.ones(400, np.uint8)])
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFLOWERS_CACHE_GB", "much")
    with pytest.raises(InputError, match="MMFLOWERS_CACHE_GB is 'much'"):
        cached_array("limited", 0, 0, (4,), lambda: [np.ones(4, np.uint8)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork and no SIGKILL")
def test_what_a_killed_process_was_writing_is_removed_and_a_living_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMFLOWERS_CACHE", str(tmp_path))

    def write_and_wait(identity: str) -> tuple[int, Path]:
        before = set(tmp_path.glob(".*.partial"))
        pid = os.fork()
        if pid == 0:
            cached_array(identity, 0, 0, (8,), lambda: [np.ones(4, np.uint8), time.sleep(60)])
            os._exit(0)
        while not (made := set(tmp_path.glob(".*.partial")) - before):
            time.sleep(0.01)
        return pid, made.pop()

    (killed, dead), (living, growing) = map(write_and_wait, ("killed", "living"))
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    try:
        ones("next", 0)
        assert not dead.exists() and growing.exists()
    finally:
        os.kill(living, signal.SIGKILL)
        os.waitpid(living, 0)
    ones("next", 0)
    assert not growing.exists()


def test_a_disk_that_takes_nothing_costs_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cached(folder, "val", TEST).batch(places(0, 2), 0)["inputs"]
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MMFLOWERS_CACHE", str(tmp_path / "file" / "cache"))
    assert torch.equal(cached(folder, "val", TEST).batch(places(0, 2), 0)["inputs"], expected)


def test_every_damaged_photo_is_named_and_nothing_stays_behind(folder: Path) -> None:
    cache = Path(os.environ["MMFLOWERS_CACHE"])
    before = {path for path in cache.iterdir() if path.suffix != ".lock"} if cache.is_dir() else set()
    damaged = sorted((folder / "val").rglob("*.jpg"))[1:3]
    for path in damaged:
        path.write_bytes(b"not a photo")
    with pytest.raises(InputError) as raised:
        cached(folder, "val", TEST).batch(places(0, 0), 0)
    assert [any(path.name in problem.what for problem in raised.value.problems) for path in damaged] == [True, True]
    assert {path for path in cache.iterdir() if path.suffix != ".lock"} == before


def test_photos_that_come_out_in_different_sizes_are_refused(folder: Path) -> None:
    from PIL import Image

    path = sorted((folder / "val").rglob("*.jpg"))[4]
    Image.new("RGB", (200, 100)).save(path)
    with pytest.raises(InputError, match="of different sizes"):
        cached(folder, "val", [TEST[0], TEST[1], TEST[3]]).batch(places(0, 0), 0)


def test_rows_come_in_order_whatever_takes_long() -> None:
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
        cached_array("stopped", 0, 0, (2, 4), rows)
    assert not list(cache.glob(".*.partial")) and not [
        path for path in cache.glob("*.npy") if path.stat().st_size < 100
    ]
    assert cached_array("stopped", 0, 0, (2, 4), lambda: [np.ones(4, np.uint8)] * 2).sum() == 8


def test_workers_of_a_loader_see_the_same_pixels(folder: Path) -> None:
    from mmflowers.engine.runner import FlowersRunner

    def batches(workers: int) -> list[torch.Tensor]:
        dataset = dict(type="FlowersDataset", data_root=str(folder), ann_file="train.txt", pipeline=TRAIN, cache=True)
        sampler = dict(type="DefaultSampler", shuffle=True)
        loader = dict(dataset=dataset, sampler=sampler, batch_size=16, num_workers=workers)
        with DefaultScope.overwrite_default_scope("mmflowers"):
            return [b["augment"](b["inputs"]) for b in FlowersRunner.build_dataloader(loader, seed=3)]

    for mine, theirs in zip(batches(2), batches(0), strict=True):
        assert torch.equal(mine, theirs)
