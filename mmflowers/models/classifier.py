"""Finding the classifier layer of a built network, whatever its name is and wherever it lies."""

from __future__ import annotations

from torch import nn


def classifier_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Find the linear layers that give a score for each class, by what is built and not by names.

    They are looked for in the head, and in the backbone where the head has no parameters (VGG, Inception). Most
    networks have one. Those with several outputs (a distilled DeiT, Conformer, Inception's auxiliary one) have more.

    Args:
        model: An MMPretrain classifier with ``backbone`` and ``head``, or a module with a ``backbone`` alone.

    Returns:
        Layers by their names in the model, in the order of registration; the last one is the classifier. Empty where
        there is none, as in a head of convolutions.
    """
    head = getattr(model, "head", None)
    part = "backbone" if head is None or next(head.parameters(), None) is None else "head"
    found = {f"{part}.{name}": m for name, m in getattr(model, part).named_modules() if isinstance(m, nn.Linear)}
    count = getattr(getattr(model, part), "num_classes", None)
    if count is None and head is not None and found:  # VigClsHead doesn't keep it: the last linear layer tells
        count = list(found.values())[-1].out_features
    return {name: layer for name, layer in found.items() if layer.out_features == count}
