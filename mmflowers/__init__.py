"""Flower photo classification on MMPretrain. Importing the package is cheap: each package imports what it needs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mmflowers.version import __version__

if TYPE_CHECKING:
    from mmflowers.inference.classifier import FlowerClassifier, Prediction

# mmcv-lite says at every start that it lacks an operator, which no classifier here uses.
warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")

__all__ = ["FlowerClassifier", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    """Bring the Python API when it is asked for, and torch with it."""
    if name not in ("FlowerClassifier", "Prediction"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from mmflowers.inference import classifier
    except ModuleNotFoundError as error:
        from mmflowers.utils.errors import not_installed

        if problem := not_installed(error):
            raise ModuleNotFoundError(str(problem), name=error.name) from None
        raise
    return getattr(classifier, name)
