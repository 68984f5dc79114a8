"""Whole batches are augmented as single photos are: pixel by pixel where the draw is given, else in distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmpretrain.datasets.transforms import RandomResizedCrop as Stock
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import ColorJitter as StockJitter
from torchvision.transforms import InterpolationMode, RandomAffine
from torchvision.transforms import functional as F

from mmflowers.rendered.photos import render_flower
from mmflowers.transforms import batched
from mmflowers.transforms.batched import Augmentation, cut, cut_one_by_one, unbatched
from mmflowers.utils.errors import InputError

CROP = dict(type="RandomResizedCrop", scale=64)
DRAWS = 3000


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return render_flower("rose", 3, (160, 160))


def as_batch(*images: Image.Image) -> Tensor:
    """BGR, as a cache holds them."""
    return torch.from_numpy(np.stack([np.asarray(image)[..., ::-1] for image in images])).permute(0, 3, 1, 2)


def as_rgb(batch: Tensor) -> Tensor:
    return batch.float().flip(1)


def one_by_one(transform: object, batch: Tensor, drawn: np.ndarray) -> Tensor:
    """What a CPU makes of a batch: uint8, by OpenCV."""
    pixels = batch.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    images = [transform.apply_one(image, values) for image, values in zip(pixels, drawn, strict=True)]
    assert all(image.dtype == np.uint8 for image in images)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def assert_almost(got: Tensor, expected: Tensor, *, mean: float, almost_all: float) -> None:
    """Levels of 0…255: steps in uint8 are rounded, and positions between pixels to a 32nd."""
    apart = (got - expected).abs()
    assert apart.mean() < mean
    assert apart.flatten().quantile(0.99) < almost_all


@pytest.mark.parametrize("box", [(0, 0, 160, 160), (20, 30, 120, 110), (5, 100, 35, 160), (60, 2, 158, 60)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_cut_is_pillows(photo: Image.Image, box: tuple[int, int, int, int], mode: str) -> None:
    top, left, bottom, right = box
    expected = photo.crop((left, top, right, bottom)).resize((64, 64), Image.Resampling[mode.upper()])
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1).float()
    for way in (cut, cut_one_by_one):
        got = as_rgb(way(as_batch(photo), np.array([box]) / 160, 64, mode))[0]
        assert (got - expected).abs().max() <= 2  # Pillow rounds between rows and columns
        assert (got - expected).abs().mean() < 0.5


@pytest.mark.parametrize("shape", [(240, 320), (500, 100), (60, 400)])
def test_boxes_are_drawn_as_mmpretrain_draws_them(shape: tuple[int, int]) -> None:
    height, width = shape
    stock, image = Stock(64), np.zeros((*shape, 3), np.uint8)
    np.random.seed(0)
    theirs = np.array([stock.rand_crop_params(image) for _ in range(DRAWS)]).T
    theirs = np.array([theirs[0], theirs[1], theirs[0] + theirs[2], theirs[1] + theirs[3]]).T
    ours = batched.RandomResizedCrop(64).draw(np.random.default_rng(0), np.tile(shape, (DRAWS, 1)))
    ours = ours * [height, width, height, width]
    for what in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 3] - box[:, 1]) / (box[:, 2] - box[:, 0]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_2samp(what(ours), what(theirs)).pvalue > 0.001


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_colours_are_jittered_as_by_torchvision(photo: Image.Image, order: tuple[int, ...]) -> None:
    factors = (1.3, 0.7, 1.5, 0.06)
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    batch = as_batch(photo)
    expected = as_rgb(batch)[0] / 255
    for number in order:
        expected = steps[number](expected, factors[number])
    jitter = batched.ColorJitter((0, 2), (0, 2), (0, 2), (-0.5, 0.5))
    got = as_rgb(jitter.apply(batch, np.array([[*factors, *order]], float)))[0]
    torch.testing.assert_close(got, expected * 255, rtol=0, atol=0.6)  # the mean for contrast is a whole number
    one = as_rgb(one_by_one(jitter, batch, np.array([[*factors, *order]], float)))[0]
    assert_almost(one, expected * 255, mean=0.8, almost_all=4)


def test_jitter_is_drawn_as_torchvision_draws_it() -> None:
    limits = dict(brightness=0.4, contrast=(0.2, 0.9), saturation=0.1, hue=0.3)
    stock = StockJitter(**limits)
    torch.manual_seed(0)
    theirs = [stock.get_params(stock.brightness, stock.contrast, stock.saturation, stock.hue) for _ in range(DRAWS)]
    drawn = Augmentation([CROP, dict(type="torchvision/ColorJitter", **limits)]).draw(
        np.random.default_rng(0), np.full((DRAWS, 2), 100)
    )[1]
    for kind in range(4):
        assert ks_2samp(drawn[:, kind], [params[kind + 1] for params in theirs]).pvalue > 0.001
        first = np.mean([int(params[0][0]) == kind for params in theirs])
        assert abs(np.mean(drawn[:, 4] == kind) - first) < 0.04


@pytest.mark.parametrize("drawn", [(12, 0, 0, 1, 0, 0), (-30, 0.1, -0.05, 1.2, 8, -4), (0, 0, 0, 0.7, 5, 0)])
def test_affine_is_torchvisions(photo: Image.Image, drawn: tuple[float, ...]) -> None:
    angle, x, y, scale, *shear = drawn
    batch = as_batch(photo).float()
    expected = F.affine(
        batch, angle, [round(x * 160), round(y * 160)], scale, shear, interpolation=InterpolationMode.BILINEAR
    )
    affine, values = batched.RandomAffine((0, 0), mode="bilinear"), np.array([drawn], float)
    torch.testing.assert_close(affine.apply(batch, values), expected, rtol=0, atol=0.5)
    assert_almost(one_by_one(affine, batch, values), expected, mean=0.3, almost_all=1)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_both_forms_of_affine_cover_the_same_pixels(mode: str) -> None:
    white, values = torch.full((1, 3, 64, 64), 255.0), np.array([[20, 0.1, -0.1, 0.8, 6, 3]], float)
    affine = batched.RandomAffine((0, 0), mode=mode)
    batch = affine.apply(white, values)
    assert 0.3 < (batch > 127).float().mean() < 0.9
    assert ((batch > 127) != (one_by_one(affine, white, values) > 127)).float().mean() < 0.01


def test_rotation_is_torchvisions(photo: Image.Image) -> None:
    batch = as_batch(photo).float()
    (_, rotation) = Augmentation(
        [CROP, dict(type="torchvision/RandomRotation", degrees=15, interpolation="bilinear")]
    ).transforms
    values, expected = np.array([[12.0, 0, 0, 1, 0, 0]]), F.rotate(batch, 12, InterpolationMode.BILINEAR)
    torch.testing.assert_close(rotation.apply(batch, values), expected, rtol=0, atol=0.5)
    assert_almost(one_by_one(rotation, batch, values), expected, mean=0.3, almost_all=1)


def test_affine_is_drawn_as_torchvision_draws_it() -> None:
    options = dict(degrees=10, translate=(0.1, 0.2), scale=(0.9, 1.1), shear=5)
    stock = RandomAffine(**options)
    torch.manual_seed(0)
    params = [
        stock.get_params(stock.degrees, stock.translate, stock.scale, stock.shear, [1000, 1000]) for _ in range(DRAWS)
    ]
    theirs = np.array([[angle, x / 1000, y / 1000, scale, *shear] for angle, (x, y), scale, shear in params])
    ours = Augmentation([CROP, dict(type="torchvision/RandomAffine", **options)]).draw(
        np.random.default_rng(0), np.full((DRAWS, 2), 100)
    )[1]
    for column in range(6):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001


def test_half_of_the_photos_are_mirrored(photo: Image.Image) -> None:
    flip = batched.RandomFlip()
    drawn = flip.draw(np.random.default_rng(0), np.ones((DRAWS, 2)))
    assert abs(drawn.mean() - 0.5) < 0.03
    batch = as_batch(photo, photo)
    got = flip.apply(batch.clone(), np.array([True, False]))
    assert torch.equal(got[0], batch[0].flip(2)) and torch.equal(got[1], batch[1])
    assert torch.equal(one_by_one(flip, batch, np.array([True, False])), got.float())


def test_a_cpu_applies_every_transform_to_every_photo(photo: Image.Image) -> None:
    """Whole batches come out as the transforms do one after the other, in the order of the pipeline."""
    augment = Augmentation(
        [
            CROP,
            dict(type="RandomFlip", prob=0.5),
            dict(type="torchvision/ColorJitter", brightness=0.3, hue=0.1),
            dict(type="torchvision/RandomRotation", degrees=30, interpolation="bilinear"),
        ]
    )
    batch = as_batch(photo, photo, photo)
    drawn = augment.draw(np.random.default_rng(0), np.full((3, 2), 160))
    expected = augment.transforms[0].apply(batch, drawn[0])
    for transform, values in zip(augment.transforms[1:], drawn[1:], strict=True):
        expected = one_by_one(transform, expected, values)
    got = augment(batch, drawn)
    assert got.dtype == torch.uint8 and got.shape == (3, 3, 64, 64)
    assert torch.equal(got.float(), expected)


def test_every_transform_that_isnt_known_is_named() -> None:
    with pytest.raises(InputError, match=r"RandAugment, RandomErasing .*known are RandomResizedCrop"):
        Augmentation([CROP, dict(type="RandAugment"), dict(type="RandomErasing")])
    with pytest.raises(InputError, match="direction=vertical"):
        Augmentation([CROP, dict(type="RandomFlip", prob=0.5, direction="vertical")])
    with pytest.raises(InputError, match="doesn't begin with RandomResizedCrop"):
        Augmentation([dict(type="RandomFlip", prob=0.5)])


LOAD, PACK = dict(type="LoadImageFromFile"), dict(type="PackInputs")


@pytest.mark.parametrize(
    ("steps", "reasons"),
    [
        ([LOAD, CROP, PACK], []),
        ([LOAD, dict(CROP, interpolation="bicubic", backend="pillow"), PACK], []),
        ([LOAD, CROP, dict(type="ColorJitter", brightness=0.4, backend="cv2"), PACK], []),
        ([LOAD, dict(type="EfficientNetCenterCrop", crop_size=64), PACK], []),  # draws nothing
        ([LOAD, dict(CROP, interpolation="bicubic"), PACK], ["RandomResizedCrop (interpolation=bicubic, backend=cv2)"]),
        ([LOAD, dict(type="RandAugment"), CROP, PACK], ["RandAugment"]),
        ([LOAD, CROP, CROP, PACK], ["a second RandomResizedCrop"]),
        ([CROP, PACK], ["a pipeline that doesn't begin with LoadImageFromFile"]),
        ([dict(LOAD, to_float32=True), CROP, PACK], ["LoadImageFromFile (to_float32=True)"]),
        ([dict(LOAD, color_type="grayscale"), CROP, PACK], ["LoadImageFromFile (color_type=grayscale)"]),
        (
            [dict(LOAD, to_float32=True), dict(type="CenterCrop", crop_size=64), PACK],
            ["LoadImageFromFile (to_float32=True)", "CenterCrop"],
        ),
    ],
)
def test_what_keeps_a_pipeline_from_being_batched_is_named(steps: list[dict], reasons: list[str]) -> None:
    assert unbatched(steps) == reasons
