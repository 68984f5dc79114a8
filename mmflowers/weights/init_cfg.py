"""Load the weights that a model's ``init_cfg`` names as those of ``load_from`` are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner import CheckpointLoader
from torch import nn

from mmflowers.registry import WEIGHT_INITIALIZERS
from mmflowers.utils.errors import InputError, count, some
from mmflowers.weights.conversion import Conversion, convert_state_dict, unwrap
from mmflowers.weights.loading import load_checkpoint_file
from mmflowers.weights.sources import fetch_weights


# MMEngine loads the weights of an init_cfg itself: upstream's edition unpickles what comes from a URL, OneDL's whatever
# a safe load refused. Both read a file only through this table of schemes, so each scheme that reads pickles is
# replaced here, for all of a process that imports this module.
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
    """Load weights for MMEngine as data only.

    Raises:
        InputError: See ``fetch_weights`` and ``load_checkpoint_file``.
    """
    checkpoint = load_checkpoint_file(fetch_weights(filename), map_location or "cpu")
    if filename.startswith("mmcls://"):  # as in MMEngine, the backbone's tensors
        tensors = unwrap(checkpoint)
        return {"state_dict": {key[9:]: value for key, value in tensors.items() if key.startswith("backbone.")}}
    return checkpoint


@WEIGHT_INITIALIZERS.register_module(name="Pretrained", force=True)
class CheckedPretrainedInit(PretrainedInit):
    """``init_cfg=dict(type='Pretrained', checkpoint=…, prefix=…)`` that reports what it fills.

    MMEngine's class ignores names that don't fit. This one matches the tensors as those of ``load_from``, logs their
    number, and raises an error if it fills nothing. It is in our scope; a part of a config with another ``_scope_``
    gets MMEngine's class, which loads by ``load_from_trusted_types`` all the same.
    """

    def __call__(self, module: nn.Module) -> None:
        """Fill ``module``.

        Raises:
            InputError: The file isn't available, is refused, or doesn't fit.
        """
        path = fetch_weights(self.checkpoint)
        conversion = convert_for_module(load_checkpoint_file(path, self.map_location), module, self.prefix)
        _as_backbone(module).load_state_dict(conversion.state_dict, strict=False)
        filled = count(len(conversion.state_dict), "tensor")
        line = f"init_cfg: {path.name} ({conversion.origin} names), {filled} of {type(module).__name__}"
        MMLogger.get_current_instance().info("; ".join(filter(None, [line, conversion.gaps, conversion.head])))
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())


def convert_for_module(checkpoint: Mapping, module: nn.Module, prefix: str | None = None) -> Conversion:
    """Convert a checkpoint for a module whose ``init_cfg`` names it; a part of the module may stay unfilled.

    Args:
        checkpoint: The loaded file.
        module: A classifier, its backbone, or another part.
        prefix: Of the tensors in the checkpoint that are for ``module``.

    Returns:
        The tensors by the names of ``module`` if it is a classifier, otherwise with ``backbone.`` before its names.

    Raises:
        InputError: No tensor has ``prefix``, none fits, or one is of another shape.
    """
    if prefix is not None:
        prefix = f"{prefix.removesuffix('.')}." if prefix else ""
        tensors = unwrap(checkpoint)
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
