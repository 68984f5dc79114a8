"""A sheet of photos as the training pipeline of a config augments them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.seeded import STEPS, Draw, SeededDataset, collate_samples, seed_generators
from mmflowers.datasets.wrappers import dataset_of
from mmflowers.engine import configuration
from mmflowers.registry import DATASETS, MODELS
from mmflowers.utils.errors import InputError
from mmflowers.visualization.sheet import Row, contact_sheet


def browse(
    config_path: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "train",
    number: int = 8,
    views: int = 6,
    seed: int | None = None,
    cfg_options: Sequence[str] = (),
) -> Image.Image:
    """Draw a sheet of photos: each unchanged, as a test uses it, and as the first epochs of a training use it.

    All but the first column are the network's inputs, with the normalisation undone. They are those of a training with
    this seed; what a preprocessor mixes within a batch is mixed among these photos.

    Args:
        config_path: See ``mmflowers.engine.training.TrainOptions``.
        data: Dataset folder in place of the config's.
        split: The list that the photos are drawn from.
        number: Of photos, drawn evenly from the classes.
        views: Epochs to show.
        seed: In place of the config's; the choice of photos follows from it too.
        cfg_options: ``KEY=VALUE`` overrides in MMEngine's dotted form.

    Raises:
        InputError: The config or dataset folder has errors, or the pipeline fails on a photo.
    """
    config = configuration.load_config(config_path)
    if data is not None:
        configuration.set_data_root(config, data)
    configuration.merge_options(config, cfg_options)
    seed = seed if seed is not None else config.get("randomness", {}).get("seed") or 0
    folder = read_dataset_folder(configuration.data_root(config), splits=(split,))
    configuration.set_classes(config, len(folder.classes))
    samples = folder.samples[split]
    chosen = _choose([label for _, label in samples], number, seed)

    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmflowers")):
        train, test = (
            SeededDataset(_dataset(config, loader, split), seed) for loader in ("train_dataloader", "test_dataloader")
        )
        preprocessor = _preprocessor(config)
        columns = [_pixels(test, preprocessor, chosen, 0, training=False)]
        for epoch in range(views):
            seed_generators(seed, STEPS, 0, epoch)  # for what a preprocessor draws
            columns.append(_pixels(train, preprocessor, chosen, epoch, training=True))
    cell = max(image.shape[0] for column in columns for image in column)
    photos = [_photo(folder.root / samples[index][0], cell) for index in chosen]
    rows = [
        Row(folder.classes[samples[index][1]], Path(samples[index][0]).name, images)
        for index, *images in zip(chosen, photos, *columns, strict=True)
    ]
    heads = ["photo", "test", *(f"epoch {epoch + 1}" for epoch in range(views))]
    return contact_sheet([(head, _size(column)) for head, column in zip(heads, [photos, *columns], strict=True)], rows)


def _choose(labels: Sequence[int], number: int, seed: int) -> list[int]:
    """Draw indices from the classes in turn, and return them sorted by class."""
    of_class = defaultdict(list)
    for index in random.Random(seed).sample(range(len(labels)), len(labels)):
        of_class[labels[index]].append(index)
    turns = sorted((turn, label, index) for label, found in of_class.items() for turn, index in enumerate(found))
    return [index for _, _, index in sorted(turns[:number], key=lambda drawn: drawn[1:])]


def _dataset(config: configuration.Config, loader: str, split: str) -> Any:
    return DATASETS.build({**dataset_of(config, loader), "ann_file": f"{split}.txt"})


def _preprocessor(config: configuration.Config) -> BaseDataPreprocessor:
    """Build the model's preprocessor, with the batch augmentations that MMPretrain's classifier adds to it."""
    preprocessor = {
        "type": "ClsDataPreprocessor",
        **(config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}),
    }
    preprocessor.setdefault("batch_augments", config.model.get("train_cfg"))
    return MODELS.build(preprocessor)


def _pixels(
    dataset: SeededDataset, preprocessor: BaseDataPreprocessor, chosen: Sequence[int], epoch: int, *, training: bool
) -> list[np.ndarray]:
    """Return the network's inputs for photos as uint8 RGB images of shape (height, width, 3)."""
    batch = collate_samples(dataset.__getitems__([Draw(epoch, 0, 0, index) for index in chosen]))
    inputs = preprocessor(batch, training)["inputs"]
    if not (isinstance(inputs, torch.Tensor) and inputs.ndim == 4 and inputs.shape[1] == 3):
        raise InputError("what the pipeline gives the network isn't a picture of three channels", "nothing to show")
    if hasattr(preprocessor, "mean"):
        inputs = inputs * preprocessor.std + preprocessor.mean
    if not getattr(preprocessor, "to_rgb", False):
        inputs = inputs.flip(1)
    return list(inputs.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())


def _photo(path: Path, side: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.contain(ImageOps.exif_transpose(image).convert("RGB"), (side, side)))


def _size(images: Sequence[np.ndarray]) -> str:
    sizes = {f"{image.shape[1]} × {image.shape[0]} px" for image in images}
    return sizes.pop() if len(sizes) == 1 else "scaled down"
