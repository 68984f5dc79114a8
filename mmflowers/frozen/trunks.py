"""The frozen layers of a network, whose output is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from mmflowers.engine.memory import is_out_of_memory
from mmflowers.models.classifier import classifier_layers
from mmflowers.utils.errors import InputError

WHOLE = "backbone"  # all but the head
CLOSE = 0.02  # of the largest value: in bfloat16, kernels for another number of photos differ by less
TRAIN_THE_HEAD = "--freeze-to a late layer of the backbone trains what comes after it"


class _Reached(Exception):
    """The trunk's end was reached: what comes after needn't be computed."""

    def __init__(self, output: Any) -> None:
        self.output = output


class Trunk:
    """The frozen part of a classifier, whose output the rest takes in place of photos.

    Args:
        model: An MMPretrain classifier.
    """

    where = ""  # the cut, for errors

    def __init__(self, model: BaseModel) -> None:
        self.model = model

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the rest needs of normalised pixels (n, 3, H, W): (n, C, H', W'), (n, tokens, C) or (n, C)."""
        raise NotImplementedError

    def aside(self) -> AbstractContextManager:
        """Let the network's inputs be the trunk's outputs, of photos as ``check`` has seen. The state dict stays."""
        raise NotImplementedError

    def check(self, inputs: Tensor) -> None:
        """See that trunk and rest together are the network.

        Raises:
            InputError: They aren't: the network has paths around the cut.
        """
        expected = self.outcome(inputs)
        features = self(inputs)
        part = slice(int(len(inputs) > 1), None)  # the rest has to work for another number of photos too
        try:
            with self.aside():
                got = self.outcome(features[part])
        except Exception as error:  # of a backbone's code, on inputs that it may not have been written for
            if is_out_of_memory(error):
                raise
            raise self.refusal(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        for one, other in zip(expected, got, strict=True):
            one = one[part]  # shares of the largest value: a new head's scores are small
            if one.shape != other.shape or not (one - other).abs().max() <= CLOSE * one.abs().max():
                raise self.refusal("the rest needs more than its output")

    def outcome(self, inputs: Tensor) -> list[Tensor]:
        """What trunk and rest together have to give: the scores."""
        return tree_leaves(self.model(inputs, mode="tensor"))

    def refusal(self, reason: str) -> InputError:
        """The error that the network can't be cut here."""
        return InputError(
            f"{type(self.model.backbone).__name__} can't be cut {self.where}: {reason}",
            "freeze to the end of a stage, as layer3, stages.2 or blocks.4",
        )


class BackboneTrunk(Trunk):
    """All but the head.

    Raises:
        InputError: The classifier is in the backbone.
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
        """See ``Trunk``: the last output of the neck, or of the backbone where there is no neck."""
        outputs = self.model.extract_feat(inputs)
        last = outputs[-1] if isinstance(outputs, tuple) else outputs
        if not isinstance(last, Tensor):
            raise self.refusal(f"the head takes {len(tree_leaves(last))} tensors, not one")
        return last

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See ``Trunk``."""
        self.model.extract_feat = _as_outputs
        try:
            yield
        finally:
            del self.model.extract_feat


class ClassifierTrunk(Trunk):
    """All but the classifier: the last linear layer (see ``classifier_layers``).

    Attributes:
        layer: The classifier.

    Raises:
        InputError: There is none, or it isn't a plain linear layer.
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
        """See ``Trunk``: what the classifier takes, (n, C)."""

        def stop(module: nn.Module, args: tuple) -> None:
            raise _Reached(args[0])

        handle = self.layer.register_forward_pre_hook(stop)
        try:
            self.model(inputs, mode="tensor")
        except _Reached as reached:
            features = reached.output
        else:
            raise self.refusal("it isn't computed")
        finally:
            handle.remove()
        if features.ndim != 2:
            raise self.refusal(f"it takes {tuple(features.shape[1:])} a photo, not one vector")
        return features

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See ``Trunk``."""
        self.model.extract_feat = _as_outputs
        self.model.head.forward = lambda feats: self.layer(feats[-1])
        try:
            yield
        finally:
            del self.model.extract_feat, self.model.head.forward

    def check(self, inputs: Tensor) -> None:
        """See ``Trunk``; with drawn weights, since those of a new head may be 0, which would hide a second branch."""
        weight = self.layer.weight.detach()
        before = weight.clone()
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        try:
            super().check(inputs)
        finally:
            weight.copy_(before)

    def refusal(self, reason: str) -> InputError:
        """The error that the classifier alone doesn't make the scores."""
        what = f"--probe can't fit the head {type(self.model.head).__name__} by its last linear layer {self.name}"
        return InputError(f"{what}: {reason}", TRAIN_THE_HEAD)


class LayerTrunk(Trunk):
    """The backbone up to a layer.

    ``check`` sees in a forward pass which modules the backbone's code calls before the layer's end, and what they give.
    When the trunk is aside, these give tensors of the same shapes without computing them, and the layer gives the
    feature maps. The backbone's code between its modules runs on: what it hands to later layers besides (Swin's height
    and width, say) is right.

    Args:
        model: An MMPretrain classifier.
        name: The last frozen layer, as the backbone calls it (``layer3``, ``blocks.4``).

    Raises:
        InputError: The backbone has no such layer; the ones it has are named.
    """

    def __init__(self, model: BaseModel, name: str) -> None:
        super().__init__(model)
        self.where = f"after {name}"
        root = getattr(model.backbone, "timm_model", model.backbone)
        try:
            self.last = root.get_submodule(name)
        except AttributeError:
            stacks = ("blocks", "layers", "stages", "features", "network", "xca_layers")
            known = [f"{stack}.{n}" for stack in stacks for n, _ in _children(root, stack)]
            known = known or [child for child, _ in root.named_children()]
            raise InputError(
                f"the backbone has no layer {name} to freeze to", f"it has {', '.join(known)}, or {WHOLE} for all"
            ) from None
        # By the shape of a photo's feature map: the shape of its pixels, and the calls that lead there.
        self._calls: dict[torch.Size, tuple[torch.Size, list[tuple[nn.Module, Any]]]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """See ``Trunk``: the layer's output."""
        handle = self.last.register_forward_hook(_stop)
        try:
            self.model.backbone(inputs)
        except _Reached as reached:
            return self._only_tensor(reached.output)
        finally:
            handle.remove()
        raise self.refusal("the backbone doesn't call it")

    def outcome(self, inputs: Tensor) -> list[Tensor]:
        """See ``Trunk``: what the head takes, since the scores of a new head may be 0."""
        outputs = self.model.extract_feat(inputs)
        return tree_leaves(outputs[-1] if isinstance(outputs, tuple) else outputs)

    def _only_tensor(self, output: Any) -> Tensor:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if len(tensors) != 1:
            raise self.refusal(f"the layer gives {len(tensors)} tensors, not one")
        return tensors[0]

    def check(self, inputs: Tensor) -> None:
        """See ``Trunk``."""
        done: list[list[tuple[nn.Module, Any]]] = [[]]  # for each call under way, the calls within it that have ended

        def begin(module: nn.Module, args: tuple) -> None:
            done.append([])

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            done.pop()
            done[-1].append((module, tree_map(lambda leaf: _Placeholder.of(leaf, len(inputs)), output)))
            if module is self.last:
                raise _Reached(output)

        handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        try:
            self.model.backbone(inputs)
        except _Reached as reached:
            features = self._only_tensor(reached.output)
            self._calls[features.shape[1:]] = (inputs.shape[1:], [call for calls in done for call in calls])
        finally:
            for handle in handles:
                handle.remove()
        super().check(inputs)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See ``Trunk``."""
        backbone = self.model.backbone
        modules = {module for _, calls in self._calls.values() for module, _ in calls}
        forwards = {module: module.forward for module in (backbone, *modules)}
        features: Tensor
        left: dict[nn.Module, list] = {}  # what each module has still to give in this pass

        def begin(inputs: Tensor) -> Any:
            nonlocal features
            features = inputs
            pixels, calls = self._calls[inputs.shape[1:]]
            left.clear()
            for module, output in calls:
                left.setdefault(module, []).append(output)
            return forwards[backbone](inputs.new_zeros(()).expand(len(inputs), *pixels))

        def given(module: nn.Module) -> Callable:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if not left.get(module):  # shared with what comes after the trunk
                    return forwards[module](*args, **kwargs)
                return tree_map(fill if module is not self.last else keep, left[module].pop(0))

            return forward

        def fill(leaf: Any) -> Any:
            return leaf.like(features) if isinstance(leaf, _Placeholder) else leaf

        def keep(leaf: Any) -> Any:
            return features if isinstance(leaf, (_Placeholder, Tensor)) else leaf

        backbone.forward = begin
        for module in modules:
            module.forward = given(module)
        try:
            yield
        finally:
            for module in forwards:
                del module.forward


@dataclass
class _Placeholder:
    """A tensor of which only the shape matters.

    Attributes:
        rows: Length of its first dimension for each photo of a batch.
        shape: The other dimensions.
        dtype: Of its numbers.
    """

    rows: int
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, leaf: Any, photos: int) -> Any:
        """A placeholder for what is computed of photos; anything else stays."""
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] % photos:
            return leaf
        return cls(leaf.shape[0] // photos, leaf.shape[1:], leaf.dtype)

    def like(self, features: Tensor) -> Tensor:
        """Zeros for as many photos as ``features`` are of; all are one number in memory."""
        zero = features.new_zeros((), dtype=self.dtype)
        return zero.expand(self.rows * len(features), *self.shape)


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Reached(output)


def _as_outputs(inputs: Tensor, stage: str = "neck") -> tuple[Tensor]:
    return (inputs,)


def _children(root: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    child = getattr(root, name, None)
    return list(child.named_children()) if isinstance(child, nn.Module) else []
