"""Weights that a model's ``init_cfg`` names, loaded and matched like those of ``load_from``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner import CheckpointLoader
from torch import nn

from mmflowers.registry import WEIGHT_INITIALIZERS
from mmflowers.utils.errors import InputError, count, some
from mmflowers.weights.conversion import Conversion, _unwrap, convert_state_dict
from mmflowers.weights.loading import load_checkpoint_file
from mmflowers.weights.sources import fetch_weights


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
