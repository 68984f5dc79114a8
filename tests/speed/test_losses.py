"""The label smoothing that doesn't wait is MMPretrain's."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.models.losses import LabelSmoothLoss
from ours.rates import counted_syncs

from mmflowers.speed.losses import FlowersLabelSmoothLoss


@pytest.mark.parametrize("mode", ["original", "classy_vision", "multi_label"])
@pytest.mark.parametrize("labels", [torch.tensor([0, 4, 2]), torch.tensor([[1], [1], [3]]), torch.eye(5)[:3] * 0.5])
def test_losses_and_gradients_are_mmpretrains(mode: str, labels: torch.Tensor) -> None:
    torch.manual_seed(0)
    ours = torch.randn(3, 5, requires_grad=True)
    stock = ours.detach().clone().requires_grad_()
    expected = LabelSmoothLoss(0.1, mode=mode)(stock, labels)
    reads: list[int] = []
    with counted_syncs(reads):
        loss = FlowersLabelSmoothLoss(0.1, mode=mode)(ours, labels)
    assert reads == [0]
    for each in (loss, expected):
        each.backward()
    assert torch.equal(loss, expected) and torch.equal(ours.grad, stock.grad)
