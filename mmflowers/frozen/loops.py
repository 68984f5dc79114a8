"""Train the layers after a frozen part on precomputed features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.model import BaseModel
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmflowers.datasets.cache import has_room
from mmflowers.datasets.seeded import Draw, SeededDataset
from mmflowers.engine.loops import ExactTrainLoop
from mmflowers.engine.memory import OutOfMemory, fits_into_memory
from mmflowers.frozen.parts import WHOLE, FrozenBackbone, FrozenPart, FrozenStem
from mmflowers.models.classifier import unwrap_model
from mmflowers.registry import LOOPS
from mmflowers.speed.fusion import fold_batchnorm
from mmflowers.transforms.batched import on_device
from mmflowers.utils.errors import InputError
from mmflowers.utils.resources import available_memory
from mmflowers.utils.terminal import progress

MEMORY_SHARE = 0.5  # of the free memory, for features


class FeatureDataset(Dataset):
    """The features of a dataset's photos, in one or several augmented views: epoch e has view e modulo their number.

    Args:
        dataset: The ``SeededDataset`` of the photos, which answers all other calls.
        features: float16 (float32 or bfloat16 if values exceed its range) of shape (views, n, …), channels last.
            Batches and their labels are on its device.
    """

    def __init__(self, dataset: SeededDataset, features: Tensor) -> None:
        self.dataset, self.features = dataset, features
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        self.labels = torch.tensor([info["gt_label"] for info in infos])
        self.paths = [info["img_path"] for info in infos]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:  # metainfo, get_data_info …
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        indices = np.array([draw.index for draw in draws])
        features = self.features[draws[0].epoch % len(self.features)]
        features = features[on_device(indices, features.device)]
        labels = on_device(self.labels[indices].numpy(), features.device).split(1)
        samples = [
            DataSample(metainfo={"img_path": self.paths[index], "sample_idx": index}).set_gt_label(label)
            for index, label in zip(indices.tolist(), labels, strict=True)
        ]
        inputs = features.permute(0, 3, 1, 2) if features.ndim == 4 else features
        return {"inputs": inputs, "data_samples": samples, "features": True}


@LOOPS.register_module()
class FrozenTrainLoop(ExactTrainLoop):
    """Compute the features of the frozen part once, then train the rest of the network on them.

    Args:
        *args: See ``ExactTrainLoop``.
        freeze_to: The last frozen layer (see ``FrozenStem``), or ``backbone`` for all but the head.
        views: Augmented views of each photo; epoch e uses view e modulo this.
        **kwargs: See ``ExactTrainLoop``.
    """

    dataloader: Any  # MMEngine's loop has it
    photos_of = "train_dataloader"  # the config's name of the loader of the training photos

    def __init__(self, *args, freeze_to: str, views: int = 4, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.freeze_to, self.views = freeze_to, views

    def run(self) -> nn.Module:
        """Compute the features and train; checkpoints have the whole network.

        Raises:
            InputError: The network can't be cut there, the features don't fit into memory, or there are several
                processes.
            OutOfMemory: A batch doesn't fit.
        """
        if self.nothing_left():  # no features are needed
            return super().run()
        if get_world_size() > 1:
            raise InputError("--freeze-to works in one process", "remove --launcher")
        frozen = self._frozen_part(unwrap_model(self.runner.model))
        self._precompute(frozen)
        with frozen.bypassed():
            return super().run()

    def _frozen_part(self, model: BaseModel) -> FrozenPart:
        return FrozenBackbone(model) if self.freeze_to == WHOLE else FrozenStem(model, self.freeze_to)

    def _precompute(self, frozen: FrozenPart) -> None:
        """Replace the photos of the train and val loader by their features."""
        val_loop = self.runner.val_loop
        self.dataloader = self._with_features(frozen, self.dataloader, self.views, self.photos_of)
        if val_loop is not None:
            val_loop.dataloader = self._with_features(frozen, val_loop.dataloader, 1, "val_dataloader")

    @torch.no_grad()
    def _with_features(self, frozen: FrozenPart, loader: DataLoader, views: int, name: str) -> DataLoader:
        """Return a loader of the same batches with features in place of photos; the config calls it ``name``."""
        dataset: Any = loader.dataset
        sampler: Any = loader.batch_sampler
        model, count, size = frozen.model.eval(), len(dataset), sampler.batch_size
        fused: FrozenPart | None = None  # the frozen part of a copy with BatchNorm fusion
        computed: list[Tensor] = []

        def compute(batch: dict) -> None:
            nonlocal fused
            with self._precision():
                inputs = model.data_preprocessor(batch, False)["inputs"]
                if fused is None:
                    frozen.verify(inputs[:4])
                    fused = self._frozen_part(fold_batchnorm(model, inputs[:4]))
                computed.append(fused(inputs))

        draws = [Draw(view, 0, 0, index) for view in range(views) for index in range(count)]
        photos = DataLoader(
            dataset,
            batch_sampler=[draws[start : start + size] for start in range(0, len(draws), size)],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        features: Tensor | None = None
        for number, batch in enumerate(progress(photos, total=len(photos), what="features of the frozen layers")):
            if not fits_into_memory(partial(compute, batch)):
                raise OutOfMemory(name, size, size // 2)
            found = computed.pop()
            if found.ndim == 4:
                found = found.permute(0, 2, 3, 1)
            if features is None:
                features = _allocate((views * count, *found.shape[1:]), torch.float16, found.device)
            largest = float(found.abs().max())
            if features.dtype == torch.float16 and largest > torch.finfo(torch.float16).max:
                features = _allocate(features.shape, found.dtype, found.device).copy_(features)
                kind = str(found.dtype).removeprefix("torch.")
                self.runner.logger.info(f"features reach {largest:.3g}, beyond float16: stored as {kind}")
            features[number * size : number * size + len(found)] = found
        assert features is not None  # a loader has photos
        return feature_loader(dataset, features.view(views, count, *features.shape[1:]), sampler)

    def _precision(self) -> Any:
        """Return the autocast context of the training."""
        wrapper = self.runner.optim_wrapper
        return wrapper.precision() if hasattr(wrapper, "precision") else nullcontext()


def feature_loader(dataset: SeededDataset, features: Tensor, batch_sampler: Any) -> DataLoader:
    """Return a loader of batches of features, see ``FeatureDataset``."""
    return DataLoader(FeatureDataset(dataset, features), batch_sampler=batch_sampler, collate_fn=_unchanged)


def _unchanged(batch: Any) -> Any:
    return batch


def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate a tensor for features: on a GPU with room for it, otherwise in the host's memory.

    Raises:
        InputError: It needs more than ``MEMORY_SHARE`` of the host's free memory, where the system reports that.
    """
    needed = math.prod(shape) * dtype.itemsize
    if has_room(device, needed):
        return torch.empty(shape, dtype=dtype, device=device)
    free = available_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise InputError(
            f"the features need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            "use fewer --views, or --freeze-to a later layer, whose features are smaller",
        )
    return torch.empty(shape, dtype=dtype)
