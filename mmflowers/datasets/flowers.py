"""``FlowersDataset``, which MMEngine builds from a dataset folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.image import imresize
from mmcv.transforms import LoadImageFromFile
from mmengine.device import get_device
from mmpretrain.datasets import CustomDataset
from mmpretrain.structures import DataSample
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from mmflowers.datasets.cache import cached_array, cached_bytes, in_threads, to_device
from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.seeded import DAMAGED, EPOCHS, seed_sequence
from mmflowers.registry import DATASETS
from mmflowers.transforms.batched import Augmentation, Drawn, is_still, on_device, unbatched
from mmflowers.utils.errors import InputError

SAMPLED = 32  # photos from which the size of all is estimated


@DATASETS.register_module()
class FlowersDataset(CustomDataset):
    """One split of a dataset folder, with the class names of its ``classes.txt`` and the photos of its list.

    MMPretrain's ``CustomDataset`` compares only the number of classes and accepts missing files and labels out of
    range. Here ``read_dataset_folder`` checks the whole folder.

    With ``cache``, photos are decoded once. What is cached depends on the pipeline:

    - Deterministic: its output, so the network gets the same pixels. Whole batches are read (``batch``).
    - Random: the photos, each resized to a square. The data preprocessor (``FlowersDataPreprocessor``) applies the
      augmentation to whole batches on the training device.
    - With transforms that have no implementation for batches (``unbatched``): the decoded photos. The pipeline runs per
      photo in the loader workers, with the same pixels as without ``cache``. This also applies to a pipeline that a
      hook sets later (MMPretrain's ``SwitchRecipeHook``).

    Args:
        data_root: The dataset folder.
        ann_file: The list of the split in it, such as ``train.txt``.
        cache: Whether to cache the photos.
        cache_size: Edge of the squares in pixels; default 8/7 of the pipeline's, rounded up to a multiple of 32.
        **kwargs: Arguments of ``CustomDataset``. ``metainfo`` and ``data_prefix`` aren't needed, because lists are
            relative to the folder.

    Raises:
        InputError: The folder has errors.

    Attributes:
        augmentation: The augmentation of whole batches; None for other pipelines.
        unbatched: With ``cache``, the transforms that prevent the processing of whole batches.
    """

    def __init__(
        self, data_root: str, ann_file: str, *, cache: bool = False, cache_size: int | None = None, **kwargs: Any
    ) -> None:
        split = ann_file.removesuffix(".txt")
        self._folder = read_dataset_folder(data_root, splits=(split,))
        self._split = split
        metainfo = kwargs.pop("metainfo", None) or {}
        if list(metainfo.get("classes", self._folder.classes)) != self._folder.classes:
            raise InputError("metainfo.classes differ from classes.txt", "remove metainfo")
        for key, what in (
            ("data_prefix", "lists are relative to the folder"),
            ("filter_cfg", "the list selects the photos"),
        ):
            if kwargs.get(key):
                raise InputError(f"FlowersDataset doesn't use {key}: {what}", f"remove {key}")
        metainfo = {**metainfo, "classes": tuple(self._folder.classes)}
        self.augmentation: Augmentation | None = None
        self._cache, self._cache_size = cache, cache_size
        self._steps = [dict(step) for step in kwargs.get("pipeline") or ()]
        self.unbatched = unbatched(self._steps) if cache else []
        if cache and not self.unbatched and not is_still(self._steps):
            self.augmentation = Augmentation(self._steps)
        self._drawn: dict[tuple[Any, ...], list[np.ndarray]] = {}
        self._photos: Tensor | None = None
        self._decoded: list[np.ndarray] | None = None
        self._is_open = False  # whether the cache of decoded photos was opened
        super().__init__(data_root=data_root, ann_file=ann_file, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one ``dict(img_path=…, gt_label=…)`` per photo, in the order of the list."""
        return [
            {"img_path": str(self._folder.root / path), "gt_label": label}
            for path, label in self._folder.samples[self._split]
        ]

    @property
    def gives_batches(self) -> bool:
        """Whether ``batch`` can be called."""
        return self._cache and not self.unbatched

    @property
    def pipeline(self) -> Any:
        """The transforms of a single photo. A pipeline that is set later isn't applied to whole batches."""
        return self._pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        is_another, self._pipeline = hasattr(self, "_pipeline"), pipeline
        if is_another and self._cache:
            self.unbatched, self.augmentation = ["a pipeline that was replaced"], None
            self._photos, self._decoded, self._is_open = None, None, False

    def open_cache(self) -> None:
        """Open the cache and create it if necessary, before the loader workers share it."""
        if self.unbatched:
            self._open_decoded()
        elif self._cache:
            self._load()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the photos, which another process reads from the cache."""
        return {**self.__dict__, "_photos": None, "_decoded": None, "_is_open": False}

    def prepare_data(self, idx: int) -> Any:
        """Return a sample as MMEngine does; photos in the cache aren't decoded again."""
        if self.unbatched:
            self._open_decoded()
        if self._decoded is None:
            return super().prepare_data(idx)
        image = self._decoded[idx].copy()  # transforms may modify it
        sample = {**self.get_data_info(idx), "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}
        for transform in self.pipeline.transforms[1:]:
            sample = transform(sample)
            if sample is None:
                return None
        return sample

    def batch(self, places: Sequence[tuple[int, int, int]], seed: int) -> dict[str, Any]:
        """Return a collated batch.

        Args:
            places: For each sample the epoch, how often it was taken before in the epoch, and the photo's index. Its
                augmentation is a function of these and the seed.
            seed: Of the run.

        Returns:
            ``inputs``: uint8 of shape (n, 3, H, W), on the GPU if the cache fits there; ``data_samples``: n samples;
            ``augment``, only for a random pipeline: a function that augments the inputs.
        """
        indices = np.array([index for *_, index in places])
        photos = self._load()
        inputs = photos[on_device(indices, photos.device)].permute(0, 3, 1, 2)  # NHWC in memory, "channels last"
        labels = on_device(self._labels[indices], photos.device).split(1)
        samples = []
        for index, label in zip(indices.tolist(), labels, strict=True):
            sample = DataSample(metainfo={"img_path": self._paths[index], "sample_idx": index})
            samples.append(sample.set_gt_label(label))
        batch = {"inputs": inputs, "data_samples": samples}
        if self.augmentation is not None:
            batch["augment"] = Drawn(self.augmentation, self._draw(self.augmentation, places, seed))
        return batch

    def _draw(self, augmentation: Augmentation, places: Sequence[tuple[int, int, int]], seed: int) -> list[np.ndarray]:
        """Draw random numbers for a whole epoch, which is faster than per photo, and return the rows of the batch."""
        rows = []
        for epoch, repeat, index in places:
            key = (seed, EPOCHS, epoch, repeat)
            if key not in self._drawn:
                if len(self._drawn) > 4:
                    self._drawn.clear()
                rng = np.random.default_rng(seed_sequence(*key))
                self._drawn[key] = augmentation.draw(rng, self._shapes)
            rows.append([values[index] for values in self._drawn[key]])
        return [np.stack(values) for values in zip(*rows, strict=True)]

    def _load(self) -> Tensor:
        """Return the photos, uint8 of shape (n, H, W, 3)."""
        if self._photos is not None:
            return self._photos
        name, state = self._read_list()
        recipe: list[str | int]
        if self.augmentation is None:
            shape = self._pixels(0).shape

            def pixels(index: int) -> np.ndarray:
                made = self._pixels(index)
                if made.shape != shape:
                    what = f"the pipeline outputs images of different sizes: {made.shape[:2]} for {self._paths[index]}"
                    raise InputError(what, "end it with a CenterCrop, or remove cache from the dataset")
                return made

            recipe, shape_of_all = ["pixels", repr(self._steps)], (len(self), *shape)
            array = cached_array(name, state, recipe, shape_of_all, lambda: in_threads(pixels, len(self)))
        else:
            edge = self._cache_size or 32 * -(-self.augmentation.size * 8 // (7 * 32))
            loader = self.pipeline.transforms[0]

            def square(index: int) -> np.ndarray:
                image = self._image(loader, index)
                scaled = imresize(image, (edge, edge), interpolation="bicubic", backend="pillow")
                return np.concatenate([scaled.ravel(), np.frombuffer(np.array(image.shape[:2], "<i4"), np.uint8)])

            # After each square, height and width of its photo, which random crops depend on.
            shape = (len(self), edge * edge * 3 + 8)
            recipe = ["squares", repr(self._steps[0]), edge]
            array = cached_array(name, state, recipe, shape, lambda: in_threads(square, len(self)))
            self._shapes = np.ascontiguousarray(array[:, -8:]).view("<i4")
            array = array[:, :-8].reshape(len(self), edge, edge, 3)
        # Not in loader workers: only the training process uses the GPU.
        photos = to_device(array, torch.device(get_device())) if get_worker_info() is None else None
        self._photos = torch.from_numpy(array) if photos is None else photos
        return self._photos

    def _open_decoded(self) -> None:
        """Open the cache of photos decoded by the pipeline's first transform, if they fit into it."""
        if self._is_open:
            return
        self._is_open = True
        loader: Any = self.pipeline.transforms[0] if self.pipeline.transforms else None
        if type(loader) is not LoadImageFromFile:
            return
        if loader.color_type != "color" or loader.to_float32 or loader.ignore_empty:  # not always uint8 RGB
            return
        name, state = self._read_list()

        def photos() -> Iterator[np.ndarray]:
            shapes = []
            for image in in_threads(lambda index: self._image(loader, index), len(self)):
                shapes.append(image.shape)
                yield image
            yield np.array(shapes, "<i8").view(np.uint8)  # last, because they aren't known before

        array = cached_bytes(name, state, ["photos", repr(loader)], self._decoded_size(), photos)
        if array is None:
            return
        shapes = np.ascontiguousarray(array[-24 * len(self) :]).view("<i8").reshape(-1, 3)
        ends = shapes.prod(1).cumsum()
        self._decoded = [
            array[end - shape.prod() : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)
        ]

    def _decoded_size(self) -> int:
        """Estimate the bytes of all decoded photos from the sizes of some."""
        some = self._paths[:: -(-len(self) // SAMPLED)]
        pixels = []
        for path in some:
            with contextlib.suppress(Exception), Image.open(path) as image:  # what can't be opened is reported later
                pixels.append(image.width * image.height)
        return int(3 * len(self) * np.mean(pixels)) if pixels else 0

    def _read_list(self) -> tuple[str, list[Any]]:
        """Read paths and labels; return the name of the list in the cache, and the state of its files."""
        infos = [self.get_data_info(index) for index in range(len(self))]
        self._paths = [info["img_path"] for info in infos]
        self._labels = np.array([info["gt_label"] for info in infos])
        files = [Path(path).stat() for path in self._paths]
        state = [[path, file.st_size, file.st_mtime_ns] for path, file in zip(self._paths, files, strict=True)]
        return f"{self._folder.root.resolve()} {self._split}", state

    def _image(self, loader: Any, index: int) -> np.ndarray:
        path = self._paths[index]
        try:
            return np.asarray(loader({"img_path": path})["img"])
        except Exception as error:
            raise InputError(
                f"{path} can't be loaded: {type(error).__name__}: {error}",
                DAMAGED,
            ) from error

    def _pixels(self, index: int) -> np.ndarray:
        """Return the output of the pipeline for a photo, of shape (H, W, 3)."""
        try:
            return np.asarray(self.pipeline(self.get_data_info(index))["inputs"].permute(1, 2, 0))
        except Exception as error:
            raise InputError(
                f"{self._paths[index]} can't be loaded: {type(error).__name__}: {error}",
                DAMAGED,
            ) from error
