"""Paint a picture from back to front: flowers, stems, leaves and grass, rotated and shaded."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from mmflowers.rendered.backgrounds import draw_background
from mmflowers.rendered.colours import GREENS, Colour, mix, pick, rgb
from mmflowers.rendered.flowers import HABITS, KINDS, Habit


class Scene:
    """A picture at the supersampled size.

    Attributes:
        canvas: The RGB image.
    """

    def __init__(self, rng: Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.short = min(width, height)
        light = np.array([rng.normal(0, 0.6), rng.normal(-0.5, 0.4), rng.uniform(0.5, 1.2)])
        self.light = light / np.linalg.norm(light)  # towards the light; x right, y down, z to the camera
        self.ambient = rng.uniform(0.42, 0.72)
        self.green = pick(rng, GREENS)
        self.colours: dict[str, Colour] = {}
        self.lean = rng.normal(0, 0.22)  # the way the stems go, or the camera is held
        self.canvas = draw_background(rng, width, height, self.green)
        self.draw = ImageDraw.Draw(self.canvas)

    def paint(self, kind: str) -> None:
        """Paint one or more flowers of a kind, and what is around them."""
        rng = self.rng
        arrangement = rng.choice(["one", "few", "bunch"], p=[0.55, 0.3, 0.15])
        if rng.random() < 0.6:
            self._foliage(int(rng.integers(2, 9)), HABITS[kind].leaf)
        if rng.random() < 0.45:  # companions behind, mostly of the same kind as in a bed, sometimes of another
            for _ in range(int(rng.integers(1, 6))):
                other = kind if rng.random() < 0.7 else str(rng.choice(KINDS))
                self._flower(other, self._anywhere(0.1), self.short * rng.uniform(0.06, 0.2), most_detail=0.4)
            self._defocus(rng.uniform(2.5, 6))
        elif rng.random() < 0.4:
            self._defocus(rng.uniform(1, 4))
        if arrangement == "one":
            places = [(self._anywhere(0.34), self.short * rng.uniform(0.2, 0.5))]
        elif arrangement == "few":
            radius = self.short * rng.uniform(0.16, 0.3)
            places = [(self._anywhere(0.2), radius * rng.uniform(0.7, 1.15)) for _ in range(int(rng.integers(2, 4)))]
        else:
            radius = self.short * rng.uniform(0.1, 0.17)
            places = [(self._anywhere(0.1), radius * rng.uniform(0.7, 1.25)) for _ in range(int(rng.integers(4, 10)))]
        for place, radius in sorted(places, key=lambda item: item[1]):  # the near ones last
            self._flower(kind, place, radius)
        if rng.random() < 0.15:
            self._before_the_lens()

    def _anywhere(self, margin: float) -> np.ndarray:
        return self.rng.uniform(margin, 1 - margin, 2) * (self.width, self.height)

    def _defocus(self, times: float) -> None:
        """Blur everything painted so far: average, smooth, enlarge."""
        factor = max(2, round(times * self.short / 480))
        small = self.canvas.reduce(factor).filter(ImageFilter.GaussianBlur(1.2))
        self.canvas = small.resize((self.width, self.height), Image.Resampling.BILINEAR)
        self.draw = ImageDraw.Draw(self.canvas)

    def _flower(self, kind: str, place: np.ndarray, radius: float, most_detail: float = 1.0) -> None:
        rng, habit = self.rng, HABITS[kind]
        if kind not in self.colours or rng.random() < 0.25:  # most beds are of one colour
            self.colours[kind] = pick(rng, habit.palette)
        colour = mix(self.colours[kind], rng.uniform(0, 255, 3), 0.04)
        form, stem_from = habit.form(rng, colour, self.green, min(most_detail, max(0.3, radius / 160)))
        tilt = float(np.clip(abs(rng.normal(*habit.tilt)), 0, 1.75))
        roll = self.lean + rng.normal(0, 0.35) + (rng.uniform(-math.pi, math.pi) if tilt < 0.35 else 0)
        pose = _turn_z(roll) @ _turn_x(tilt) @ _turn_z(rng.uniform(-math.pi, math.pi))
        distance = rng.uniform(3.2, 9)  # of the camera, in flower radii: near ones are distorted by the perspective
        squeeze = np.array([rng.normal(1, 0.06), rng.normal(1, 0.06)])

        def project(points: np.ndarray) -> np.ndarray:
            return points[..., :2] * (distance / (distance - points[..., 2:])) * squeeze * radius + place

        start = project(pose @ np.array([0, 0, stem_from]))
        self._stem(start, (pose @ np.array([0, 0, -1.0]))[:2], radius, habit)
        quads = (form.quads.reshape(-1, 3) @ pose.T).reshape(-1, 4, 3)
        normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
        facing = np.abs(normals @ self.light) / (np.linalg.norm(normals, axis=1) + 1e-9)
        # thin petals are lit from both sides, and what lies low in the flower gets less light
        depth = np.clip(0.85 + 0.25 * form.quads[:, :, 2].mean(axis=1), 0.7, 1.1)
        shade = (self.ambient + (1.12 - self.ambient) * facing**0.8) * depth
        colours = np.clip(form.colours * shade[:, None], 0, 255).astype(np.int32)
        ink = colours @ np.array([1, 1 << 8, 1 << 16], np.int32)  # Pillow takes ABGR, quicker than a tuple
        order = np.argsort(quads[:, :, 2].mean(axis=1), kind="stable")
        corners = project(quads[order]).reshape(-1, 8)
        x, y = corners[:, ::2], corners[:, 1::2]
        inside = (x.max(1) > 0) & (x.min(1) < self.width) & (y.max(1) > 0) & (y.min(1) < self.height)
        polygon = self.draw.polygon
        for corner, fill in zip(corners[inside].tolist(), ink[order][inside].tolist(), strict=True):
            polygon(corner, fill=fill)

    def _stem(self, start: np.ndarray, away: np.ndarray, radius: float, habit: Habit) -> None:
        """Paint a stem from the flower's base out of the picture, bending from the flower's axis to the plant's."""
        rng = self.rng
        down = np.array([math.sin(-self.lean), math.cos(self.lean)])
        end = start + down * (self.height + radius - start[1]) + (rng.normal(0, radius * 0.3), radius)
        bend = start + away * radius * 1.2 + down * radius * 0.6
        t = np.linspace(0, 1, 14)[:, None]
        curve = start * (1 - t) ** 2 + bend * 2 * t * (1 - t) + end * t**2
        width = max(2, radius * habit.stem * rng.uniform(0.8, 1.2))
        colour = mix(self.green, (150, 90, 70), rng.choice([0, 0.1, 0.35]))
        for offset, scale, tone in ((0.0, 1.0, 0.6), (-0.12, 0.66, 0.85), (-0.2, 0.25, 1.08)):
            line = [tuple(point) for point in (curve + np.array([offset * width, 0])).tolist()]
            self.draw.line(line, fill=rgb(colour * tone), width=max(1, round(width * scale)), joint="curve")
        for _ in range(int(rng.integers(0, 4))):
            at = curve[int(rng.integers(4, 13))]
            side = rng.choice([-1, 1])
            heading = math.pi / 2 - side * rng.uniform(1.2, 2.6) if habit.leaf != "long" else -math.pi / 2 + side * 0.4
            self._leaf(at, heading, radius * rng.uniform(0.6, 1.5), habit.leaf)

    def _foliage(self, count: int, own: str) -> None:
        for _ in range(count):
            shape = own if self.rng.random() < 0.6 else str(self.rng.choice(list(_LEAVES)))
            heading = self.rng.normal(-math.pi / 2, 0.9)
            where = np.array([self.rng.uniform(0, self.width), self.rng.uniform(0.78, 1.1) * self.height])
            self._leaf(where, heading, self.short * self.rng.uniform(0.2, 0.65), shape)

    def _leaf(self, base: np.ndarray, heading: float, length: float, shape: str) -> None:
        """Paint a leaf as two halves in two tones along a bent midrib."""
        rng = self.rng
        width, teeth, depth = _LEAVES[shape]
        u = np.linspace(0, 1, 26)
        outline = np.sin(math.pi * u**0.8) * width * rng.uniform(0.8, 1.2)
        outline *= 1 + depth * ((u * teeth) % 1 - 0.5)
        course = heading + rng.normal(0, 0.5) * u
        step = np.stack([np.cos(course), np.sin(course)], axis=1) * (length / 25)
        rib = base + np.cumsum(step, axis=0)
        across = np.stack([-np.sin(course), np.cos(course)], axis=1) * (outline * length)[:, None]
        colour = mix(self.green, pick(rng, GREENS), 0.4) * rng.uniform(0.7, 1.15)
        for side, tone in ((1, rng.uniform(0.75, 1.0)), (-1, rng.uniform(0.95, 1.2))):
            half = np.concatenate([rib, (rib + side * across)[::-1]])
            self.draw.polygon(half.reshape(-1).tolist(), fill=rgb(colour * tone))
        thin = max(1, round(length * 0.012))
        self.draw.line(rib.reshape(-1).tolist(), fill=rgb(colour * 1.3), width=thin)
        for side in (-1, 1):
            tips = rib[7:25:4] + side * across[7:25:4] * 0.8
            for vein in np.concatenate([rib[4:22:4], tips], axis=1).tolist():
                self.draw.line(vein, fill=rgb(colour * 1.12), width=1)

    def _before_the_lens(self) -> None:
        """Paint blades out of focus between the camera and the flower."""
        rng = self.rng
        scale = 8
        mask = Image.new("L", (self.width // scale, self.height // scale))
        draw = ImageDraw.Draw(mask)
        for _ in range(int(rng.integers(1, 4))):
            x = rng.uniform(0, mask.width)
            top = (x + rng.normal(0, mask.width * 0.2), rng.uniform(0, 0.7) * mask.height)
            broad = rng.uniform(0.02, 0.05) * mask.width
            draw.polygon([(x - broad, mask.height), top, (x + broad, mask.height)], fill=int(rng.integers(120, 220)))
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
        mask = mask.resize((self.width, self.height), Image.Resampling.BILINEAR)
        self.canvas.paste(rgb(self.green * rng.uniform(0.6, 1.2)), (0, 0), mask)
        self.draw = ImageDraw.Draw(self.canvas)


_LEAVES = {  # half width as a share of the length, number of teeth, their depth
    "oval": (0.28, 9, 0.12),
    "long": (0.11, 1, 0.0),
    "toothed": (0.17, 6, 0.9),
    "lobed": (0.14, 5, 0.5),
}


def _turn_x(angle: float) -> np.ndarray:
    """Return the rotation that tips the axis from the camera (+z) to the top of the picture (-y)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _turn_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
