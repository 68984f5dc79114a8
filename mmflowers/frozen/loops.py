"""Train the layers after a frozen part on precomputed features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.model import BaseModel, is_model_wrapper
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmflowers.datasets.cache import has_room
from mmflowers.datasets.seeded import Draw, SeededDataset
from mmflowers.engine.loops import ExactTrainLoop
from mmflowers.engine.memory import OutOfMemory, is_out_of_memory
from mmflowers.frozen.trunks import WHOLE, BackboneTrunk, LayerTrunk, Trunk
from mmflowers.registry import LOOPS
from mmflowers.speed.fusion import fold_batchnorm
from mmflowers.transforms.batched import on_device
from mmflowers.utils.errors import InputError
from mmflowers.utils.resources import available_memory
from mmflowers.utils.terminal import progress

MEMORY_SHARE = 0.5  # of the memory that is free, for feature maps


class FeatureDataset(Dataset):
    """Feature maps of a dataset's photos, in one or several augmented views, taken in turn epoch by epoch.

    Args:
        dataset: The ``SeededDataset`` of the photos, for all else that is asked of a dataset.
        features: float16 (float32 or bfloat16 where numbers exceed its range) of shape (views, n, …), channels last. A
            batch and its labels are where they are, on a GPU or in the host's memory.
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
    """Computes the feature maps of a frozen trunk once, and trains the rest on them.

    Args:
        *args: Those of ``ExactTrainLoop``.
        freeze_to: The last frozen layer (see ``LayerTrunk``), or ``backbone`` for all but the head.
        views: Augmented views of each photo; epoch e takes view e modulo this.
        **kwargs: Those of ``ExactTrainLoop``.
    """

    dataloader: Any  # MMEngine's loop has it
    photos_of = "train_dataloader"  # the config's name of the loader that training photos come from

    def __init__(self, *args, freeze_to: str, views: int = 4, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.freeze_to, self.views = freeze_to, views

    def run(self) -> nn.Module:
        """Compute, then train as ever; checkpoints hold the whole network."""
        if self.nothing_left():  # no features are needed
            return super().run()
        if get_world_size() > 1:
            raise InputError("--freeze-to works in one process", "leave --launcher away")
        trunk = self._trunk(self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model)
        self._compute(trunk)
        with trunk.aside():
            return self._train(trunk)

    def _trunk(self, model: BaseModel) -> Trunk:
        return BackboneTrunk(model) if self.freeze_to == WHOLE else LayerTrunk(model, self.freeze_to)

    def _compute(self, trunk: Trunk) -> None:
        val_loop = self.runner.val_loop
        self.dataloader = self._with_features(trunk, self.dataloader, self.views, self.photos_of)
        if val_loop is not None:
            val_loop.dataloader = self._with_features(trunk, val_loop.dataloader, 1, "val_dataloader")

    def _train(self, trunk: Trunk) -> nn.Module:
        return super().run()

    @torch.no_grad()
    def _with_features(self, trunk: Trunk, loader: DataLoader, views: int, name: str) -> DataLoader:
        """The batches of a loader, which the config calls ``name``, with feature maps in place of photos."""
        dataset: Any = loader.dataset
        batches: Any = loader.batch_sampler
        model, count, size = trunk.model.eval(), len(dataset), batches.batch_size
        folded: Trunk | None = None
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
        for number, batch in enumerate(progress(photos, total=len(photos), what="features of the frozen trunk")):
            found = None
            try:
                with self._precision():
                    inputs = model.data_preprocessor(batch, False)["inputs"]
                    if folded is None:
                        trunk.check(inputs[:4])
                        folded = self._trunk(fold_batchnorm(model, inputs[:4]))
                    found = folded(inputs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if found is None:  # outside of the handler, which holds on to the memory of the failed pass
                raise OutOfMemory(name, size, size // 2)
            if found.ndim == 4:
                found = found.permute(0, 2, 3, 1)
            if features is None:
                shape = (views * count, *found.shape[1:])
                features = _allocate(shape, torch.float16, found.device)
            largest = float(found.abs().max())
            if features.dtype == torch.float16 and largest > torch.finfo(torch.float16).max:
                features = _allocate(features.shape, found.dtype, found.device).copy_(features)
                kind = str(found.dtype).removeprefix("torch.")
                self.runner.logger.info(f"feature maps reach {largest:.3g}, beyond float16: stored as {kind}")
            start = number * size
            features[start : start + len(found)] = found
        assert features is not None  # a loader has photos
        features = features.view(views, count, *features.shape[1:])
        return DataLoader(FeatureDataset(dataset, features), batch_sampler=batches, collate_fn=_as_it_is)

    def _precision(self) -> Any:
        """That of the training."""
        wrapper = self.runner.optim_wrapper
        return wrapper.precision() if hasattr(wrapper, "precision") else nullcontext()


def _as_it_is(batch: Any) -> Any:
    return batch


def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor for feature maps: on a GPU that has room for them, else in the host's memory.

    Raises:
        InputError: They don't fit into the host's memory beside everything else, where the system says what is free.
    """
    needed = math.prod(shape) * dtype.itemsize
    if has_room(device, needed):
        return torch.empty(shape, dtype=dtype, device=device)
    free = available_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise InputError(
            f"the feature maps need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            "fewer --views, or --freeze-to a later layer, whose maps are smaller",
        )
    return torch.empty(shape, dtype=dtype)
