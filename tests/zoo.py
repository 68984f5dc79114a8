"""What MMPretrain's metafiles say of its weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mmpretrain
import yaml

MMPRETRAIN = Path(mmpretrain.__file__).parent / ".mim" / "configs"


@cache
def weights_and_configs() -> list[tuple[str, str]]:
    """The address of all weights, and the config of their network as a path in ``MMPRETRAIN``."""
    models = [
        model
        for path in MMPRETRAIN.glob("*/metafile.yml")
        for model in yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["Models"]
    ]
    return [
        (model["Weights"], model["Config"].removeprefix("configs/"))
        for model in models
        if model.get("Weights") and model.get("Config")
    ]
