"""Write a network as ONNX, TorchScript or a checkpoint of half the size."""

from __future__ import annotations

import copy
import inspect
import io
import json
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.config import Config
from mmpretrain.models import ClsDataPreprocessor
from torch import Tensor, nn

from mmflowers.datasets.identity import TRAINED_ON
from mmflowers.datasets.wrappers import dataset_of
from mmflowers.inference.classifier import FlowerClassifier
from mmflowers.utils.errors import InputError
from mmflowers.version import __version__

OPSET = 17  # the first with a LayerNormalization operator; onnxruntime supports it since 1.12
INPUT, OUTPUT = "images", "scores"
METADATA = "facts.json"  # in a TorchScript file; in ONNX each key is a metadata property
# The keys of a config that build and test the network; the others are for training.
CONFIG_KEYS = (
    "default_scope",
    "custom_imports",
    "data_preprocessor",
    "model",
    "test_dataloader",
    "test_evaluator",
    "test_cfg",
)
META_KEYS = ("dataset_meta", "epoch", "iter", "best", "mmengine_version", TRAINED_ON)
CONFIG_HEAD = "# The config to predict and test with {checkpoint} in this folder; written by tools/export.py.\n\n"


class Network(nn.Module):
    """A classifier as one function from images to probabilities, without MMPretrain's data samples.

    Args:
        model: An MMPretrain classifier in evaluation mode.
        preprocessing: Whether images are pixels, uint8 of shape (n, H, W, 3) in RGB, which are normalised here. Else
            they are normalised, float32 of shape (n, 3, H, W) in the network's order of channels.

    Raises:
        InputError: The data preprocessor of the classifier isn't supported.
    """

    def __init__(self, model: nn.Module, *, preprocessing: bool) -> None:
        super().__init__()
        if not isinstance(model.data_preprocessor, ClsDataPreprocessor):
            kind = type(model.data_preprocessor).__name__
            raise InputError(f"the data preprocessor {kind} can't be exported", "use ClsDataPreprocessor")
        self.model: Any = model
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities, float32 of shape (n, classes)."""
        return torch.softmax(self.model(self.normalise(images) if self.preprocessing else images), dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise RGB pixels, uint8 of shape (n, H, W, 3), to the network's float32 of shape (n, 3, H, W)."""
        images = images.permute(0, 3, 1, 2).float()
        if not self.model.data_preprocessor.to_rgb:
            images = images.flip(1)
        mean, std = self.normalisation
        return (images - mean) / std

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each of shape (3, 1, 1), in the network's order of channels."""
        known = self.model.data_preprocessor
        return (known.mean, known.std) if hasattr(known, "mean") else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


def image_size(pipeline: Callable[[dict], dict]) -> tuple[int, int]:
    """Return height and width of the images that a test pipeline produces.

    Raises:
        InputError: They depend on the photo.
    """
    sizes = set()
    for shape in ((960, 1280), (1280, 960)):
        blank = {"img": np.zeros((*shape, 3), np.uint8), "img_shape": shape, "ori_shape": shape}
        sizes.add(tuple(pipeline(blank)["inputs"].shape[1:]))
    if len(sizes) > 1:
        raise InputError(
            "the test pipeline produces images of several sizes, but an exported network takes one",
            "end test_dataloader.dataset.pipeline with a CenterCrop, or a Resize to height and width",
        )
    return sizes.pop()


def network_metadata(classifier: FlowerClassifier, network: Network, checkpoint: Path, sha256: str) -> dict[str, Any]:
    """Return the metadata of the exported files: classes, input, resizing, normalisation, source and versions."""
    height, width = image_size(classifier.pipeline)
    turned = network.preprocessing and not network.model.data_preprocessor.to_rgb
    mean, std = ((values.flip(0) if turned else values).flatten().tolist() for values in network.normalisation)
    channels = "RGB" if network.preprocessing or network.model.data_preprocessor.to_rgb else "BGR"
    kind = {"dtype": "uint8", "layout": "NHWC"} if network.preprocessing else {"dtype": "float32", "layout": "NCHW"}
    return {
        "classes": list(classifier.classes),
        "input": {"name": INPUT, **kind, "channels": channels},
        "input_size": [height, width],
        "resizing": [_settings(step) for step in classifier.pipeline.transforms if type(step).__name__ != "PackInputs"],
        "mean": mean,
        "std": std,
        "source": {"checkpoint": checkpoint.name, "sha256": sha256},
        "versions": {
            "mmflowers": __version__,
            "mmpretrain": mmpretrain.__version__,
            "mmengine": mmengine.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _settings(step: Any) -> dict[str, Any]:
    """Return the type of a transform and all its settings, including defaults."""
    names = inspect.signature(type(step)).parameters
    settings = {name: getattr(step, name) for name in names if hasattr(step, name)}
    plain = (str, int, float, list, tuple)
    return {
        "type": type(step).__name__,
        **{name: value for name, value in settings.items() if isinstance(value, plain)},
    }


# Both formats are traced. torch.onnx's newer exporter, based on torch.export, fails on BatchNorm under torch 2.6 with
# current onnxscript versions, and 2.6 can't load files of torch.export.save of 2.14. Each of the two versions loads the
# traced files of the other (docs/exporting.md), and tracing to ONNX needs no onnxscript.


def to_onnx(network: Network, images: Tensor, metadata: dict[str, Any]) -> bytes:
    """Trace ``network`` with ``images`` to an ONNX file that takes any number of images.

    Raises:
        InputError: ONNX or torch's exporter doesn't support an operation of the network.
    """
    import onnx

    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about deprecated tracing and about sizes that tracing fixes
        try:
            torch.onnx.export(
                network,
                (images,),
                buffer,  # type: ignore[arg-type]  # with dynamo=False it takes a buffer
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        except torch.onnx.OnnxExporterError as error:
            what = " ".join(str(error).split())
            hint = "export without ONNX: --formats torchscript slim"
            raise InputError(f"the network can't be written as ONNX: {what}", hint) from error
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def to_float16(data: bytes) -> bytes:
    """Convert the weights of an ONNX file to float16 and cast them back in the graph, which computes in float32.

    This halves the size. onnxruntime casts once, at loading. Vectors (biases, statistics) stay in float32, because they
    are small and have a wide range.
    """
    import onnx

    model = onnx.load_from_string(data)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name, weights = tensor.name, onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]  # ONNX requires topological order
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def to_torchscript(network: Network, images: Tensor, metadata: dict[str, Any]) -> bytes:
    """Trace ``network`` with ``images`` to a TorchScript file that contains the metadata as ``METADATA``."""
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, (images,))
        torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def to_slim(model: nn.Module, meta: dict[str, Any]) -> bytes:
    """Return a checkpoint with weights in float16 (except vectors, as in ``to_float16``) and ``META_KEYS`` of ``meta``.

    Loading copies the weights into a float32 network, so it needs no special code.
    """
    weights = {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    buffer = io.BytesIO()
    kept = {name: meta[name] for name in META_KEYS if name in meta}
    torch.save({"meta": kept, "state_dict": weights}, buffer)
    return buffer.getvalue()


def slim_config(config: Config, checkpoint: str) -> str:
    """Return the part of a run's config that predicts and tests, for the checkpoint of that name in its folder.

    Stock MMPretrain reads it without mmflowers. It contains no absolute path.
    """
    kept: Any = Config({name: copy.deepcopy(config[name]) for name in CONFIG_KEYS if name in config})
    if "data_preprocessor" in kept:
        kept.model.pop("data_preprocessor", None)  # a copy by MMPretrain
        if kept.data_preprocessor.get("type") == "FlowersDataPreprocessor":  # equal apart from augmentation
            kept.data_preprocessor.type = "ClsDataPreprocessor"
    if "custom_imports" in kept:
        kept.custom_imports.allow_failed_imports = True
    dataset = dataset_of(kept, "test_dataloader")
    dataset.pop("cache", None)
    if dataset.get("data_root") and Path(dataset.data_root).is_absolute():
        dataset.data_root = Path(dataset.data_root).name
    return CONFIG_HEAD.format(checkpoint=checkpoint) + kept.pretty_text
