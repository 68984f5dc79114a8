"""Mixed precision that also runs where MMEngine's own asks for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward and backward under bfloat16 autocast, on a CPU or a GPU.

    bfloat16 has float32's range, so unlike MMEngine's ``AmpOptimWrapper`` no loss scaling is needed; weights and the
    optimizer's state stay float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Wrap the forward pass of a training step."""
        device = get_device()
        with super().optim_context(model), torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            yield
