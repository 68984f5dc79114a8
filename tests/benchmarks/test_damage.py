"""benchmarks/damage.py: every kind of damage does harm, good photos stay good, and the table counts them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import damage
import numpy as np
import pytest
from PIL import Image

UNSEEN = {"WebP, 512 B of zeros"}  # nothing in a WebP tells


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "rose").mkdir()
    for number in range(3):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(64, 256, (6, 6, 3), dtype=np.uint8)).resize((320, 240))
        fine = Image.fromarray(rng.integers(64, 256, (240, 320, 3), dtype=np.uint8))
        Image.blend(coarse, fine, 0.15).save(tmp_path / "rose" / f"{number}.jpg", quality=90)
    return tmp_path


def test_each_kind_does_visible_harm_and_is_found(photos: Path) -> None:
    damage._start(sorted(photos.rglob("*.jpg")), 0)
    for kind in damage.DAMAGES:
        outcomes = {damage._damage((kind, number))[1] for number in range(4)}
        assert outcomes & {"found", "raises", "missed"}, kind
        assert outcomes & {"found", "raises"} or kind in UNSEEN, kind


def test_good_photos_are_kept(photos: Path) -> None:
    damage._start(sorted(photos.rglob("*.jpg")), 0)
    for kind in damage.GOOD:
        assert [damage._good((kind, number))[1] for number in range(3)] == ["", "", ""], kind


def test_the_table_counts_damages_and_good_photos(photos: Path, capsys: pytest.CaptureFixture) -> None:
    damage.benchmark(Namespace(photos=photos, number=3, seed=0, workers=1, kinds=["cut, end", "as PNG"]))
    said = capsys.readouterr().out
    assert "| cut, end marker appended | 3 | 3 | 100.0 % | 0 | 0 | 0 |" in said
    assert "| as they are | 3 | 0 |  |" in said
    assert "| saved as PNG | 3 | 0 |  |" in said
