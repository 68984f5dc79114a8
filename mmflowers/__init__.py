"""Flower photo classification on MMPretrain. Importing the package is cheap: each room imports what it needs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmflowers.deploy.classifier import FlowerClassifier, Prediction

# mmcv-lite says at every start that it lacks an operator, which no classifier here uses.
warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")

__version__ = "0.1.0"
__all__ = ["FlowerClassifier", "Prediction"]


def __getattr__(name: str) -> Any:
    """Bring the Python API when it is asked for, and torch with it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmflowers.deploy import classifier

    return getattr(classifier, name)
