"""The quick moving average is MMEngine's."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmflowers.speed.averaging import ForeachEMA


@pytest.mark.parametrize("update_buffers", [False, True])
@pytest.mark.parametrize("interval", [1, 3])
def test_averages_are_mmengines(update_buffers: bool, interval: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    options = dict(momentum=0.1, interval=interval, update_buffers=update_buffers)
    stock, ours = ExponentialMovingAverage(model, **options), ForeachEMA(model, **options)
    for step in range(7):
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn(tensor.shape).to(tensor.dtype) + 1)
        stock.update_parameters(model)
        ours.update_parameters(model)
        if step == 3:  # a resumed run: the counter comes out of a checkpoint
            resumed = ForeachEMA(model, **options)
            resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
            ours = resumed
    for (name, mine), theirs in zip(ours.state_dict().items(), stock.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
