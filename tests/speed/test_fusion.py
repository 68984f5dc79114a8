"""Folded norms: the same network, with fewer layers, and never another one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mmflowers.engine  # noqa: F401  registers
from mmflowers.registry import MODELS
from mmflowers.speed.fusion import fold_batchnorm, foldable

RESNET = dict(backbone=dict(type="ResNet", depth=50, base_channels=8, stem_channels=8), width=256)
LITE = dict(backbone=dict(type="TIMMBackbone", model_name="tf_efficientnet_lite0", features_only=False), width=1280)


def build(backbone: dict, width: int) -> nn.Module:
    torch.manual_seed(0)
    head = dict(type="LinearClsHead", num_classes=5, in_channels=width)
    model = MODELS.build(
        dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training: nothing is 0 or 1
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(torch.randn_like(tensor) * 0.1)
            module.running_var.mul_(torch.rand_like(module.running_var) + 0.5)
    return model.eval()


@pytest.mark.parametrize("model", [RESNET, LITE], ids=["resnet", "lite"])
@torch.no_grad()
def test_the_folded_network_is_the_same_without_its_norms(model: dict) -> None:
    network = build(**model)
    inputs = torch.randn(3, 3, 64, 64)
    expected, before = network(inputs, mode="tensor"), {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold_batchnorm(network, inputs[:1])
    torch.testing.assert_close(folded(inputs, mode="tensor"), expected, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("model", "pairs"), [(RESNET, 53), (LITE, 49)], ids=["resnet", "lite"])
@torch.no_grad()
def test_under_bfloat16_autocast_all_pairs_are_folded_too(model: dict, pairs: int) -> None:
    network = build(**model)
    inputs = torch.randn(3, 3, 64, 64)
    expected = network(inputs, mode="tensor")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(foldable(network, inputs[:1])) == pairs
        folded = fold_batchnorm(network, inputs[:1])
        got, unfolded = folded(inputs, mode="tensor"), network(inputs, mode="tensor")
    for one, other in ((got, unfolded), (got, expected)):  # 8 bits of a mantissa, through 50 layers
        assert (one - other).abs().max() < 0.05 * expected.abs().max()
    torch.testing.assert_close(folded(inputs, mode="tensor"), expected, rtol=1e-3, atol=1e-4)


class Around(nn.Module):
    """The convolution's output is used beside its norm as well: folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.add_(1)

    def extract_feat(self, inputs: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.conv(inputs)
        return (x + self.norm(x),)


class Twice(Around):
    """One norm for two convolutions."""

    def extract_feat(self, inputs: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.norm(self.conv(inputs)) + self.norm(self.conv(inputs.flip(3))),)


@pytest.mark.parametrize("kind", [Around, Twice])
@torch.no_grad()
def test_what_cant_be_folded_stays(kind: type[nn.Module]) -> None:
    network = kind().eval()
    inputs = torch.randn(2, 3, 8, 8)
    (got,) = fold_batchnorm(network, inputs).extract_feat(inputs)
    assert torch.equal(got, network.extract_feat(inputs)[0])


class Nested(nn.Module):
    """Gives None and a list, as Inception and Conformer do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def extract_feat(self, inputs: torch.Tensor) -> tuple:
        maps = self.norm(self.conv(inputs))
        return None, [maps, maps.mean((2, 3))]


def test_norms_of_a_backbone_that_gives_none_and_lists_are_folded_too() -> None:
    network = Nested().eval()
    network.norm.running_mean += 1
    inputs = torch.randn(2, 3, 8, 8)
    assert foldable(network, inputs) == [("conv", "norm")]
    _, maps = fold_batchnorm(network, inputs).extract_feat(inputs)
    torch.testing.assert_close(maps, network.extract_feat(inputs)[1], rtol=1e-4, atol=1e-5)
