"""Predict photos with the network of a trained run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmpretrain import ImageClassificationInferencer, get_model
from PIL import Image
from torch import Tensor, nn

from mmflowers.datasets.folder import DatasetFolder
from mmflowers.engine.configuration import load_config, set_classes
from mmflowers.engine.single_label import require_single_label
from mmflowers.evaluation.tested import default_checkpoint
from mmflowers.frozen.parts import FrozenNetwork
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import Batch, PhotoDataset, read_batches
from mmflowers.speed.fusion import fold_batchnorm, in_float32
from mmflowers.utils.errors import InputError, Problem
from mmflowers.weights.conversion import convert_state_dict
from mmflowers.weights.loading import load_checkpoint_file, require_finite
from mmflowers.weights.sources import drop_sources

Photo = str | Path | Image.Image | np.ndarray


class Prediction(NamedTuple):
    """The prediction for one photo.

    Attributes:
        image: Path of the photo, or its index in the input.
        label: Predicted label, from 0; None if the photo can't be read.
        class_name: Name of the predicted class.
        score: Its probability.
        top: The ``top_k`` most probable classes as ``(name, probability)``, the most probable first.
        scores: Probabilities of all classes, float32 of shape (classes,); None if the photo can't be read.
        reason: Why the photo can't be read; else empty.
    """

    image: str
    label: int | None = None
    class_name: str = ""
    score: float = float("nan")
    top: tuple[tuple[str, float], ...] = ()
    scores: np.ndarray | None = None
    reason: str = ""


class FlowerClassifier:
    """Predict photos with the network and the test pipeline of a run.

    Pipeline and forward pass are those of MMPretrain's ``ImageClassificationInferencer``. Its ``__call__`` isn't used,
    because it decodes any file without limits, in the process that computes, and keeps all results. Its loading isn't
    used, because it unpickles.

    Args:
        model: A loaded MMPretrain classifier with its config in ``_config`` (``mmpretrain.get_model``).
        classes: Class names, indexed by label.
        device: Default: a GPU if there is one.
        amp: Whether the backbone computes in bfloat16: faster on hardware that supports it, with slightly other scores.
        tta: Whether to use test-time augmentation: the scores are the mean over the photo and its mirror image.

    Attributes:
        classes: Class names, indexed by label.
        model: The network in evaluation mode.
        pipeline: The test pipeline without its first step, which loads the file.
    """

    def __init__(
        self,
        model: BaseModel,
        classes: Iterable[str],
        *,
        device: str | torch.device | None = None,
        amp: bool = False,
        tta: bool = False,
    ) -> None:
        self.classes = tuple(classes)
        self.tta = tta
        self.device = torch.device(device or get_device())
        _require_usual_loading(model._config)
        require_single_label(model)
        self._inferencer = ImageClassificationInferencer(model, device=self.device, classes=self.classes)
        self.model = model.to(memory_format=torch.channels_last)
        if amp:
            model.backbone = _BFloat16(model.backbone)
        self.pipeline = self._inferencer.pipeline

    @classmethod
    def from_run(
        cls,
        work_dir: str | Path,
        *,
        checkpoint: str | None = None,
        device: str | torch.device | None = None,
        amp: bool = False,
        tta: bool = False,
    ) -> FlowerClassifier:
        """Build the network from the config in a work dir and load a checkpoint of it, as data only.

        Args:
            work_dir: Of the run, or a checkpoint in it; it may have been copied or moved. Its config is executed.
            checkpoint: File name in the work dir; default ``best.pth``, or ``last.pth`` without validation.
            device, amp, tta: See the class.

        Raises:
            InputError: The work dir has no checkpoint or not exactly one config, the checkpoint is of another network,
                or weights are NaN or infinite.
        """
        if Path(work_dir).is_file():
            work_dir, checkpoint = Path(work_dir).parent, Path(work_dir).name
        path = Path(work_dir) / checkpoint if checkpoint else default_checkpoint(Path(work_dir))
        if not path.is_file():
            raise InputError(f"no trained run in {work_dir}: it has no {path.name}", "give the work dir of a training")
        configs = sorted(Path(work_dir).glob("*.py"))
        if len(configs) != 1:
            found = f"{len(configs)} configs" if configs else "no config"
            hint = f"keep only the config of the training next to {path.name}"
            raise InputError(f"{work_dir} contains {found}", hint)
        config = load_config(configs[0])
        saved = load_checkpoint_file(path)
        classes = _classes(saved, path)
        set_classes(config, len(classes))
        if not config.get("test_dataloader"):
            what = f"{configs[0]} has no test_dataloader, whose pipeline prepares the photos"
            raise InputError(what, "use the config that the training wrote into the work dir")
        drop_sources(config.model)  # all weights come from the checkpoint
        config.model.setdefault("_scope_", config.default_scope)  # get_model's own default is mmpretrain
        model = get_model(config, pretrained=False)
        state = convert_state_dict(saved.get("state_dict", saved), model, keep_head=True).state_dict
        require_finite(state, path)
        model.load_state_dict(state, strict=False)  # verified above, apart from BatchNorm's counters
        return cls(model, classes, device=device, amp=amp, tta=tta)

    def predict(
        self, images: Photo | Iterable[Photo], *, batch_size: int = 32, top_k: int = 3, workers: int = 0
    ) -> list[Prediction]:
        """Predict photos.

        Args:
            images: One or several paths, http(s) addresses, PIL images, or NumPy arrays in **RGB** order, uint8 of
                shape (H, W, 3).
            batch_size: Photos per forward pass.
            top_k: Number of classes in ``Prediction.top``.
            workers: Number of processes that decode; 0 decodes in this process.

        Returns:
            One prediction per photo, in the order of ``images``.

        Raises:
            InputError: Photos can't be read; the message names each.
        """
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        inputs = (_as_input(number, image) for number, image in enumerate(images))
        predictions = list(self.stream(inputs, batch_size=batch_size, top_k=top_k, workers=workers))
        unread = [Problem(f"{found.image} can't be read: {found.reason}") for found in predictions if found.reason]
        if unread:
            raise InputError(problems=unread)
        return predictions

    def stream(
        self, inputs: Iterable[Input], *, batch_size: int = 32, top_k: int = 3, workers: int = 0
    ) -> Iterator[Prediction]:
        """Yield one prediction per input, in order; memory doesn't grow with the number of inputs.

        Args:
            inputs: For example from ``mmflowers.inference.inputs.find_inputs``.
            batch_size, top_k, workers: See ``predict``.
        """
        dataset = PhotoDataset(self.pipeline)
        for batch in read_batches(inputs, dataset, batch_size=batch_size, workers=workers):
            yield from self.predict_batch(batch, top_k=top_k)

    def read(self, photo: str | Image.Image | np.ndarray, name: str) -> Batch:
        """Read one photo as a batch, in this process; a photo that can't be read has a reason and no pixels."""
        (batch,) = read_batches([Input(name, photo)], PhotoDataset(self.pipeline), batch_size=1, workers=0)
        return batch

    def predict_batch(self, batch: Batch, *, top_k: int) -> list[Prediction]:
        """Predict a batch from ``read_batches``."""
        rows = iter(() if batch.pixels is None else self.scores(batch.pixels))
        return [
            Prediction(input_.name, reason=input_.reason)
            if input_.reason
            else _prediction(input_.name, next(rows), self.classes, top_k)
            for input_ in batch.inputs
        ]

    def scores(self, pixels: Tensor | list[Tensor]) -> np.ndarray:
        """Compute the probabilities, float32 of shape (n, classes), of n photos after the test pipeline."""
        if self._inferencer.model is self.model and isinstance(pixels, Tensor):
            with torch.no_grad():
                few = self.model.data_preprocessor({"inputs": pixels[:2]})["inputs"]
            self._inferencer.model = _folded(self.model, few)
        views = [pixels]
        if self.tta:
            views.append(pixels.flip(-1) if isinstance(pixels, Tensor) else [image.flip(-1) for image in pixels])
        found = [self._inferencer.forward({"inputs": view}) for view in views]
        scores = [torch.stack([sample.pred_score for sample in samples]) for samples in found]
        return torch.stack(scores).mean(dim=0).cpu().numpy()

    def features(self, pixels: Tensor | list[Tensor]) -> np.ndarray:
        """Compute the input of the last linear layer, float32 of shape (n, features), of n photos.

        Args:
            pixels: See ``scores``.

        Raises:
            InputError: The network has no such layer.
        """
        with torch.no_grad():
            prepared = self.model.data_preprocessor({"inputs": pixels})["inputs"]
            return FrozenNetwork(self.model)(prepared).float().cpu().numpy()


def require_classes(folder: DatasetFolder, classes: Sequence[str]) -> None:
    """Raise an error if a dataset folder has other classes than the run.

    Raises:
        InputError: The names or their order differ.
    """
    if list(folder.classes) != list(classes):
        what = f"{folder.root} has the classes {', '.join(folder.classes)}, the run {', '.join(classes)}"
        raise InputError(what, "give the dataset folder of the training with --data")


class _BFloat16(nn.Module):
    """Run a backbone under bfloat16 autocast; neck and head stay in float32, else scores would have steps of 1/256."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            maps = self.backbone(x)
        return in_float32(maps)


def _folded(model: BaseModel, inputs: Tensor) -> BaseModel:
    """Call ``fold_batchnorm``, which compares in float32, on a model whose backbone may be a ``_BFloat16``."""
    if not isinstance(model.backbone, _BFloat16):
        return fold_batchnorm(model, inputs)
    plain = copy.deepcopy(model)
    plain.backbone = plain.backbone.backbone
    folded = fold_batchnorm(plain, inputs)
    folded.backbone = _BFloat16(folded.backbone)
    return folded


def _prediction(name: str, scores: np.ndarray, classes: tuple[str, ...], top_k: int) -> Prediction:
    order = np.argsort(-scores, kind="stable")[:top_k]
    label = int(scores.argmax())
    top = tuple((classes[index], float(scores[index])) for index in order)
    return Prediction(name, label, classes[label], float(scores[label]), top, scores)


def _as_input(number: int, image: Photo) -> Input:
    if isinstance(image, (str, Path)):
        return Input(str(image) or f"image {number}", str(image))
    return Input(f"image {number}", image)


def _classes(saved: dict, path: Path) -> list[str]:
    meta = saved.get("meta")
    known = meta.get("dataset_meta") if isinstance(meta, dict) else None
    classes = known.get("classes") if isinstance(known, dict) else None
    if not classes or isinstance(classes, str):
        hint = "use a checkpoint of tools/train.py, which stores them"
        raise InputError(f"{path} contains no class names", hint)
    return [str(name) for name in classes]


def _require_usual_loading(config: Config) -> None:
    """Raise an error if the pipeline loads files in another way than this module, which would change the pixels."""
    step = (config.test_dataloader.dataset.get("pipeline") or [{}])[0]
    kind = step.get("type")
    name = kind.__name__ if isinstance(kind, type) else kind
    if name != "LoadImageFromFile" or step.get("color_type", "color") != "color" or step.get("to_float32"):
        raise InputError(
            f"the first step of the test pipeline is {dict(step)}, which doesn't load a colour photo",
            "begin test_dataloader.dataset.pipeline with dict(type='LoadImageFromFile')",
        )
