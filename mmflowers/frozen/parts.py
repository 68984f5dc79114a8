"""The frozen part of a network: its features are computed once, and the rest of the network is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from mmflowers.engine.memory import is_out_of_memory
from mmflowers.models.classifier import classifier_layers
from mmflowers.utils.errors import InputError

WHOLE = "backbone"  # for --freeze-to: all but the head
CLOSE = 0.02  # of the largest value: in bfloat16, kernels for another number of photos differ by less
TRAIN_THE_HEAD = "--freeze-to a late layer of the backbone trains what comes after it"


class _Reached(Exception):
    """Ends a forward pass at the frozen part's last layer."""

    def __init__(self, output: Any) -> None:
        self.output = output


class _NotCalled(Exception):
    """A forward pass doesn't call the frozen part's last layer."""


class FrozenPart:
    """The frozen part of a classifier, up to a cut. Its output, the features, replaces photos as the network's input.

    Args:
        model: An MMPretrain classifier.
    """

    where = ""  # the cut, for errors

    def __init__(self, model: BaseModel) -> None:
        self.model = model

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute the features of normalised pixels (n, 3, H, W): (n, C, H', W'), (n, tokens, C) or (n, C)."""
        raise NotImplementedError

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Let ``model`` take features as inputs, in the ``with`` block; its state dict stays the same.

        ``verify`` must have been called with photos of the same size.
        """
        replaced = self._replacements()
        for module, method, replacement in replaced:
            setattr(module, method, replacement)
        try:
            yield
        finally:
            for module, method, _ in replaced:
                delattr(module, method)  # the method of the class is called again

    def _replacements(self) -> list[tuple[nn.Module, str, Callable]]:
        """Return what to replace for features as inputs: modules, names of their methods, and functions."""
        return [(self.model, "extract_feat", lambda inputs, stage="neck": (inputs,))]

    def verify(self, inputs: Tensor) -> None:
        """Check that the rest of the network gives the same outputs on features as the whole network on photos.

        Args:
            inputs: A few normalised photos.

        Raises:
            InputError: The network has paths around the cut, or its code doesn't run on features.
        """
        expected = self.compared(inputs)
        features = self(inputs)
        part = slice(int(len(inputs) > 1), None)  # the rest must work for another number of photos too
        try:
            with self.bypassed():
                got = self.compared(features[part])
        except Exception as error:  # of a backbone's code, on inputs that it may not have been written for
            if is_out_of_memory(error):
                raise
            raise self.refusal(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        for one, other in zip(expected, got, strict=True):
            one = one[part]  # shares of the largest value: a new head's scores are small
            if one.shape != other.shape or not (one - other).abs().max() <= CLOSE * one.abs().max():
                raise self.refusal("the rest needs more than its output")

    def compared(self, inputs: Tensor) -> list[Tensor]:
        """Return the outputs that ``verify`` compares: the scores."""
        return tree_leaves(self.model(inputs, mode="tensor"))

    def refusal(self, reason: str) -> InputError:
        """Return the error that the network can't be cut here."""
        return InputError(
            f"{type(self.model.backbone).__name__} can't be cut {self.where}: {reason}",
            "freeze to the end of a stage, as layer3, stages.2 or blocks.4",
        )


class FrozenBackbone(FrozenPart):
    """All but the head: the features are the last output of the neck, or of the backbone if there is no neck.

    Raises:
        InputError: The classifier layer is in the backbone.
    """

    where = "before the head"

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        name = next(reversed(classifier_layers(model)), "")
        if name.startswith("backbone."):
            raise InputError(
                f"the classifier of {type(model.backbone).__name__} is a layer of the backbone, {name}: with the whole "
                "backbone frozen nothing is left to train",
                "--freeze-to an earlier layer, or --probe, which fits the classifier alone",
            )

    def __call__(self, inputs: Tensor) -> Tensor:
        """See ``FrozenPart``."""
        last = _last(self.model.extract_feat(inputs))
        if not isinstance(last, Tensor):
            raise self.refusal(f"the head takes {len(tree_leaves(last))} tensors, not one")
        return last


class FrozenNetwork(FrozenPart):
    """All but the classifier, the last linear layer (``classifier_layers``): the features are its inputs, (n, C).

    Attributes:
        name, layer: The classifier's name in the model, and the layer itself.

    Raises:
        InputError: There is no such layer, or it isn't a plain linear layer.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        layers = classifier_layers(model)
        if not layers:
            what = f"the head {type(model.head).__name__} has no linear layer that gives a score for each class"
            raise InputError(what, TRAIN_THE_HEAD)
        self.name, self.layer = list(layers.items())[-1]
        if type(self.layer).forward is not nn.Linear.forward or self.layer.bias is None:
            what = f"the classifier {self.name}, a {type(self.layer).__name__}, isn't a linear layer with a bias"
            raise InputError(f"{what}, which --probe fits", TRAIN_THE_HEAD)

    def __call__(self, inputs: Tensor) -> Tensor:
        """See ``FrozenPart``."""
        try:
            features = _run_until(self.layer, lambda: self.model(inputs, mode="tensor"), inputs=True)
        except _NotCalled:
            raise self.refusal("it isn't computed") from None
        if features.ndim != 2:
            raise self.refusal(f"it takes {tuple(features.shape[1:])} a photo, not one vector")
        return features

    def _replacements(self) -> list[tuple[nn.Module, str, Callable]]:
        return [*super()._replacements(), (self.model.head, "forward", lambda feats: self.layer(feats[-1]))]

    def verify(self, inputs: Tensor) -> None:
        """See ``FrozenPart``; with random weights, because the zeros of a new head would hide a second branch."""
        weight = self.layer.weight.detach()
        before = weight.clone()
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        try:
            super().verify(inputs)
        finally:
            weight.copy_(before)

    def refusal(self, reason: str) -> InputError:
        """Return the error that the scores aren't those of the classifier layer alone."""
        what = f"--probe can't fit the head {type(self.model.head).__name__} by its last linear layer {self.name}"
        return InputError(f"{what}: {reason}", TRAIN_THE_HEAD)


class FrozenStem(FrozenPart):
    """The backbone up to a layer: the features are the layer's output.

    ``verify`` records in a forward pass which modules the backbone's code calls up to the layer's end, and the shapes
    of their outputs. While bypassed, these modules return tensors of the same shapes without computing them, and the
    layer returns the features. The backbone's code between its modules still runs, so what it passes to later layers
    (Swin's height and width, for example) is right.

    Args:
        model: An MMPretrain classifier.
        name: The last frozen layer, by its name in the backbone (``layer3``, ``blocks.4``).

    Raises:
        InputError: The backbone has no such layer; the layers it has are named.
    """

    def __init__(self, model: BaseModel, name: str) -> None:
        super().__init__(model)
        self.where = f"after {name}"
        root = getattr(model.backbone, "timm_model", model.backbone)
        try:
            self.last = root.get_submodule(name)
        except AttributeError:
            children = dict(root.named_children())
            stacks = ("blocks", "layers", "stages", "features", "network", "xca_layers")
            known = [
                f"{stack}.{n}" for stack in stacks if stack in children for n, _ in children[stack].named_children()
            ]
            raise InputError(
                f"the backbone has no layer {name} to freeze to",
                f"it has {', '.join(known or children)}, or {WHOLE} for all",
            ) from None
        # By the shape of a photo's features: the shape of its pixels, and the calls up to the layer.
        self._calls: dict[torch.Size, tuple[torch.Size, list[tuple[nn.Module, Any]]]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """See ``FrozenPart``."""
        try:
            return self._only_tensor(_run_until(self.last, lambda: self.model.backbone(inputs)))
        except _NotCalled:
            raise self.refusal("the backbone doesn't call it") from None

    def compared(self, inputs: Tensor) -> list[Tensor]:
        """Return the head's inputs: the scores of a new head may be 0."""
        return tree_leaves(_last(self.model.extract_feat(inputs)))

    def _only_tensor(self, output: Any) -> Tensor:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if len(tensors) != 1:
            raise self.refusal(f"the layer gives {len(tensors)} tensors, not one")
        return tensors[0]

    def verify(self, inputs: Tensor) -> None:
        """See ``FrozenPart``."""
        ended: list[list[tuple[nn.Module, Any]]] = [[]]  # for each unfinished call, the finished calls within it

        def begin(module: nn.Module, args: tuple) -> None:
            ended.append([])

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            ended.pop()
            ended[-1].append((module, tree_map(lambda leaf: _shape_of(leaf, len(inputs)), output)))
            if module is self.last:
                raise _Reached(output)

        handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        try:
            self.model.backbone(inputs)
        except _Reached as reached:
            features = self._only_tensor(reached.output)
            self._calls[features.shape[1:]] = (inputs.shape[1:], [call for calls in ended for call in calls])
        finally:
            for handle in handles:
                handle.remove()
        super().verify(inputs)

    def _replacements(self) -> list[tuple[nn.Module, str, Callable]]:
        backbone = self.model.backbone
        modules = {module for _, calls in self._calls.values() for module, _ in calls}
        forwards = {module: module.forward for module in (backbone, *modules)}
        features: Tensor
        outputs: dict[nn.Module, list] = {}  # of each module, those that it hasn't returned in this pass

        def forward_backbone(inputs: Tensor) -> Any:
            nonlocal features
            features = inputs
            pixels, calls = self._calls[inputs.shape[1:]]
            outputs.clear()
            for module, output in calls:
                outputs.setdefault(module, []).append(output)
            return forwards[backbone](inputs.new_zeros(()).expand(len(inputs), *pixels))

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not outputs.get(module):  # a module that is also used after the frozen part
                return forwards[module](*args, **kwargs)
            return tree_map(as_features if module is self.last else as_zeros, outputs[module].pop(0))

        def as_zeros(leaf: Any) -> Any:
            return leaf.zeros(features) if isinstance(leaf, _Shape) else leaf

        def as_features(leaf: Any) -> Any:
            return features if isinstance(leaf, (_Shape, Tensor)) else leaf

        replaced = [(module, "forward", partial(forward, module)) for module in modules]
        return [(backbone, "forward", forward_backbone), *replaced]


@dataclass
class _Shape:
    """A tensor of which only shape and dtype matter: ``rows`` for each photo of a batch, each of ``shape``."""

    rows: int
    shape: torch.Size
    dtype: torch.dtype

    def zeros(self, features: Tensor) -> Tensor:
        """Return zeros for as many photos as ``features`` has, in the memory of one number."""
        return features.new_zeros((), dtype=self.dtype).expand(self.rows * len(features), *self.shape)


def _shape_of(leaf: Any, photos: int) -> Any:
    """Return the ``_Shape`` of a tensor computed from a batch of ``photos``; anything else unchanged."""
    if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] % photos:
        return leaf
    return _Shape(leaf.shape[0] // photos, leaf.shape[1:], leaf.dtype)


def _run_until(layer: nn.Module, forward: Callable[[], object], *, inputs: bool = False) -> Any:
    """Run a forward pass until ``layer`` has ended, and return its output, or with ``inputs`` its first input.

    Raises:
        _NotCalled: The forward pass doesn't call the layer.
    """

    def stop(module: nn.Module, args: tuple, output: Any = None) -> None:
        raise _Reached(args[0] if inputs else output)

    handle = layer.register_forward_pre_hook(stop) if inputs else layer.register_forward_hook(stop)
    try:
        forward()
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise _NotCalled


def _last(outputs: Any) -> Any:
    return outputs[-1] if isinstance(outputs, tuple) else outputs
