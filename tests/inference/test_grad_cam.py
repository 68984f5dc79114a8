"""Grad-CAM on networks of which it is known where they look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmflowers.inference.grad_cam import grad_cam
from mmflowers.utils.errors import InputError
from mmflowers.visualization.cam import overlay


class LooksAtColour(nn.Module):
    """Class 0 is how much red there is, class 1 how much green, each against the other."""

    with_neck = True

    def extract_feat(self, inputs: torch.Tensor, stage: str) -> tuple[torch.Tensor]:
        assert stage == "backbone"
        red, green, blue = inputs.unbind(1)
        maps = torch.stack([red - torch.maximum(green, blue), green - torch.maximum(red, blue)], dim=1).relu()
        return (nn.functional.avg_pool2d(maps, 8),)

    def neck(self, maps: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (maps[-1].mean(dim=(2, 3)),)

    def head(self, maps: tuple[torch.Tensor]) -> torch.Tensor:
        return maps[-1] @ torch.tensor([[1.0, -1.0], [-1.0, 1.0]])


def test_the_map_is_where_the_class_is() -> None:
    inputs = torch.zeros(2, 3, 64, 64)
    inputs[:, 0, 8:24, 32:56] = 1  # red above, right
    inputs[:, 1, 40:56, 8:24] = 0.5  # green below, left
    cam = grad_cam(LooksAtColour(), inputs, torch.tensor([0, 1]))
    assert cam.shape == (2, 64, 64)
    assert cam.amax(dim=(1, 2)).tolist() == [1, 1] and cam.min() >= 0
    assert cam[0, 16, 44] > 0.9 and cam[0, 48, 16] == 0
    assert cam[1, 48, 16] > 0.9 and cam[1, 16, 44] == 0
    assert torch.equal(grad_cam(LooksAtColour(), inputs)[1], cam[0])  # by itself it explains what it predicts: red


def test_on_a_rendered_rose_it_is_on_the_petals_rather_than_in_the_corners(dataset) -> None:
    inside, corners = [], []
    for path in sorted((dataset / "train" / "rose").glob("*.jpg")):
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB").resize((96, 96)))).permute(2, 0, 1)
        cam = grad_cam(LooksAtColour(), pixels[None] / 255, torch.tensor([0]))[0]
        inside.append(cam[24:72, 24:72].mean())
        corners.append(torch.cat([cam[:16, :16], cam[:16, -16:], cam[-16:, :16], cam[-16:, -16:]]).mean())
    assert sum(inside) > 3 * sum(corners)


def test_a_class_that_nothing_speaks_for_gives_an_empty_map() -> None:
    assert grad_cam(LooksAtColour(), torch.zeros(1, 3, 64, 64)).abs().max() == 0


def test_a_network_without_a_map_is_refused() -> None:
    model = LooksAtColour()
    model.extract_feat = lambda inputs, stage: (inputs.flatten(1),)
    with pytest.raises(InputError, match="whose output is a feature map"):
        grad_cam(model, torch.zeros(1, 3, 64, 64))


def test_the_overlay_is_red_where_the_map_is_high_and_blue_where_it_is_low() -> None:
    cam = np.zeros((4, 4))
    cam[0, 0] = 1
    image = overlay(np.full((4, 4, 3), 100, np.uint8), cam)
    red, _, blue = (int(value) for value in image[0, 0])
    assert red > blue
    red, _, blue = (int(value) for value in image[3, 3])
    assert blue > red
