"""A trained run as a function from photos to classes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
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

from mmflowers.engine.configuration import load_config, set_classes
from mmflowers.engine.single_label import require_single_label
from mmflowers.evaluation.tested import default_checkpoint
from mmflowers.frozen.trunks import ClassifierTrunk
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.speed.fusion import fold_batchnorm, in_float32
from mmflowers.utils.errors import InputError, Problem
from mmflowers.weights.conversion import convert_state_dict
from mmflowers.weights.loading import load_checkpoint_file, require_finite
from mmflowers.weights.sources import drop_sources

Photo = str | Path | Image.Image | np.ndarray


class Prediction(NamedTuple):
    """What the network says of one photo.

    Attributes:
        image: Path of the photo, or its number in what was given.
        label: Number of the class, from 0; None where the photo can't be read.
        class_name: Its name.
        score: Its probability.
        top: The ``top_k`` likeliest classes as ``(name, probability)``, the likeliest first.
        scores: Probabilities of all classes, float32 of shape (classes,); None where the photo can't be read.
        reason: Why the photo can't be read; empty otherwise.
    """

    image: str
    label: int | None = None
    class_name: str = ""
    score: float = float("nan")
    top: tuple[tuple[str, float], ...] = ()
    scores: np.ndarray | None = None
    reason: str = ""


class FlowerClassifier:
    """Predicts photos with the network of a run; the pixels are those of the config's test pipeline.

    It stands on MMPretrain's ``ImageClassificationInferencer``, which brings the pipeline and the forward pass. Its
    ``__call__`` isn't used: that decodes whatever comes, without limits, in the process that computes, and holds all
    results; nor is its loading, which unpickles.

    Args:
        model: An MMPretrain classifier, loaded, with its config in ``_config`` (``mmpretrain.get_model``).
        classes: Names by label.
        device: Default a GPU where there is one.
        amp: The backbone computes in bfloat16: faster on processors and GPUs that have it, scores differ a little.
        tta: Test-time augmentation: scores are the mean of those of a photo and of its mirror image.

    Attributes:
        classes: Names by label.
        model: The network, ready to predict.
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
        _refuse_other_loading(model._config)
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
        """Load the best checkpoint of a run, as data only, and build the network by the config that the run keeps.

        Args:
            work_dir: Of the run, copied or moved if need be, or a checkpoint in such a folder. The config in it is
                Python that is run.
            checkpoint: The one in the folder to take; default ``best.pth``, without a validation ``last.pth``.
            device: As for the class.
            amp: As for the class.
            tta: As for the class.

        Raises:
            InputError: No such run, config and checkpoint don't belong together, or weights that are NaN or infinite.
        """
        if Path(work_dir).is_file():
            work_dir, checkpoint = Path(work_dir).parent, Path(work_dir).name
        path = Path(work_dir) / checkpoint if checkpoint else default_checkpoint(Path(work_dir))
        if not path.is_file():
            raise InputError(f"no trained run in {work_dir}: it has no {path.name}", "name the work dir of a training")
        configs = sorted(Path(work_dir).glob("*.py"))
        if len(configs) != 1:
            found = f"{len(configs)} configs" if configs else "no config"
            raise InputError(
                f"{work_dir} holds {found}", f"keep the one that the run was trained with beside {path.name}"
            )
        config = load_config(configs[0])
        saved = load_checkpoint_file(path)
        classes = _classes(saved, path)
        set_classes(config, len(classes))
        if not config.get("test_dataloader"):
            raise InputError(f"{configs[0]} has no test_dataloader, whose pipeline makes the network's pixels")
        drop_sources(config.model)  # all weights are the checkpoint's
        config.model.setdefault("_scope_", config.default_scope)  # get_model's own default is mmpretrain
        model = get_model(config, pretrained=False)
        state = convert_state_dict(saved.get("state_dict", saved), model, keep_head=True).state_dict
        require_finite(state, path)
        model.load_state_dict(state, strict=False)  # all but counters of BatchNorm were held against the model
        return cls(model, classes, device=device, amp=amp, tta=tta)

    def predict(
        self, images: Photo | Iterable[Photo], *, batch_size: int = 32, top_k: int = 3, workers: int = 0
    ) -> list[Prediction]:
        """Predict photos.

        Args:
            images: Paths (or http(s) addresses), PIL images, or NumPy arrays in **RGB** order, uint8 of shape
                (H, W, 3); one or several of them.
            batch_size: Photos that go through the network together.
            top_k: How many classes ``Prediction.top`` holds.
            workers: Processes that decode beside this one.

        Returns:
            A prediction for each photo, in their order.

        Raises:
            InputError: With every photo that can't be read.
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
        """Yield a prediction for each input as they come, in their order; memory doesn't grow with their number.

        Args:
            inputs: As ``mmflowers.inference.inputs.find_inputs`` gives them.
            batch_size: As in ``predict``.
            top_k: As in ``predict``.
            workers: As in ``predict``.
        """
        dataset = PhotoDataset(self.pipeline)
        for batch in read_batches(inputs, dataset, batch_size=batch_size, workers=workers):
            yield from self.judge(batch.inputs, batch.pixels, top_k=top_k)

    def judge(self, inputs: list[Input], pixels: Tensor | list[Tensor] | None, *, top_k: int) -> list[Prediction]:
        """Predict a batch that ``read_batches`` gave."""
        rows = iter(() if pixels is None else self.scores(pixels))
        return [
            Prediction(input_.name, reason=input_.reason)
            if input_.reason
            else _prediction(input_.name, next(rows), self.classes, top_k)
            for input_ in inputs
        ]

    def scores(self, pixels: Tensor | list[Tensor]) -> np.ndarray:
        """Probabilities, float32 of shape (n, classes), of what the test pipeline made of n photos."""
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
        """What the classifier, the last linear layer, takes of n photos: float32 of shape (n, features).

        Args:
            pixels: As for ``scores``.

        Raises:
            InputError: The network has no such layer.
        """
        with torch.no_grad():
            prepared = self.model.data_preprocessor({"inputs": pixels})["inputs"]
            return ClassifierTrunk(self.model)(prepared).float().cpu().numpy()


class _BFloat16(nn.Module):
    """A backbone under bfloat16 autocast; neck and head stay in float32, or scores would come in steps of 1/256."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            maps = self.backbone(x)
        return in_float32(maps)


def _folded(model: BaseModel, inputs: Tensor) -> BaseModel:
    """``fold_batchnorm``, which compares in float32, for a model whose backbone may be a ``_BFloat16``."""
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
        raise InputError(
            f"{path} doesn't say which classes it tells apart", "train with tools/train.py, which notes them"
        )
    return [str(name) for name in classes]


def _refuse_other_loading(config: Config) -> None:
    """Refuse a pipeline that reads the file in another way than we do: its pixels would be others."""
    step = (config.test_dataloader.dataset.get("pipeline") or [{}])[0]
    kind = step.get("type")
    name = kind.__name__ if isinstance(kind, type) else kind
    if name != "LoadImageFromFile" or step.get("color_type", "color") != "color" or step.get("to_float32"):
        raise InputError(
            f"the test pipeline begins with {dict(step)}, not by reading a colour photo",
            "test_dataloader.dataset.pipeline has to begin with dict(type='LoadImageFromFile')",
        )
