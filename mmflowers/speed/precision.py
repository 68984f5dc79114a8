"""Mixed precision that also works without a GPU, unlike MMEngine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from mmflowers.registry import OPTIM_WRAPPERS


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16: a GPU from Ampere on, a CPU with AMX or AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(ask() for ask in asks if ask is not None)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward and backward under bfloat16 autocast, on a CPU or a GPU.

    bfloat16 has float32's range, so no loss scaling is needed as in MMEngine's ``AmpOptimWrapper``. Weights and the
    optimizer's state stay float32.

    Args:
        *args: See ``OptimWrapper``.
        where_fast: Use float32 on a device that only emulates bfloat16 (see ``has_fast_bfloat16``).
        **kwargs: See ``OptimWrapper``.

    Attributes:
        computes_bfloat16: Whether it computes in bfloat16 on this device.
    """

    def __init__(self, *args, where_fast: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._device = torch.device(get_device())
        self.computes_bfloat16 = not where_fast or has_fast_bfloat16(self._device)

    def precision(self) -> AbstractContextManager:
        """Return the autocast context of a forward pass."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16) if self.computes_bfloat16 else nullcontext()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass of a training step."""
        with super().optim_context(model), self.precision():
            yield
