"""A moving average of a model's weights in few kernels."""

from __future__ import annotations

import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmflowers.registry import MODELS


@MODELS.register_module()
class ForeachEMA(ExponentialMovingAverage):
    """MMEngine's ``ExponentialMovingAverage`` with one call for all tensors, which reads nothing from the device.

    Use it with ``dict(type='EMAHook', ema_type='ForeachEMA', …)``.
    """

    _count: int | None = None

    def update_parameters(self, model: nn.Module) -> None:
        """Update the averages of the model's parameters, with ``update_buffers`` of its buffers too."""
        if self._count is None:  # also after a resume, which sets the counter on the device
            self._count = int(self.steps)
        source = model.state_dict() if self.update_buffers else dict(model.named_parameters())
        pairs = [(average.data, source[name].data) for name, average in self.avg_parameters.items()]
        pairs = [pair for pair in pairs if self._count == 0 or pair[0].is_floating_point()]
        averages, values = (list(side) for side in zip(*pairs, strict=True))
        if self._count == 0:
            torch._foreach_copy_(averages, values)
        elif self._count % self.interval == 0:
            torch._foreach_lerp_(averages, values, self.momentum)
        if not self.update_buffers:
            buffers = list(self.module.buffers())
            if buffers:
                torch._foreach_copy_(buffers, list(model.buffers()))
        self.steps += 1
        self._count += 1
