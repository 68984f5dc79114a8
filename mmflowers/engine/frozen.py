"""Training of a network's last part on what a frozen trunk makes of the photos, computed once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.model import BaseModel, is_model_wrapper
from mmpretrain.registry import LOOPS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from mmflowers.commands import progress
from mmflowers.datasets.augmentation import on_device
from mmflowers.datasets.cache import has_room
from mmflowers.datasets.seeded import Draw, SeededDataset
from mmflowers.datasets.wrappers import innermost
from mmflowers.engine.loops import ExactTrainLoop, OutOfMemory, is_out_of_memory
from mmflowers.engine.memory import available_memory
from mmflowers.errors import InputError
from mmflowers.models.classifier import classifier_layers
from mmflowers.models.folding import fold_batchnorm

WHOLE = "backbone"  # all but the head
MEMORY_SHARE = 0.5  # of the memory that is free, for feature maps
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


class FeatureDataset(Dataset):
    """Feature maps of a dataset's photos, in one or several augmented views, taken in turn epoch by epoch.

    Args:
        dataset: The ``SeededDataset`` of the photos, for all else that is asked of a dataset.
        features: float16 (float32 or bfloat16 where numbers exceed its range) of shape (views, n, …), channels last. A
            batch and its labels are where they are, on a GPU or in the host's memory.
    """

    def __init__(self, dataset: SeededDataset, features: Tensor) -> None:
        self.dataset, self.features = dataset, features
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        self.labels = torch.tensor([info["gt_label"] for info in infos])
        self.paths = [info["img_path"] for info in infos]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:  # metainfo, get_data_info …
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        indices = np.array([draw.index for draw in draws])
        features = self.features[draws[0].epoch % len(self.features)]
        features = features[on_device(indices, features.device)]
        labels = on_device(self.labels[indices].numpy(), features.device).split(1)
        samples = [
            DataSample(metainfo={"img_path": self.paths[index], "sample_idx": index}).set_gt_label(label)
            for index, label in zip(indices.tolist(), labels, strict=True)
        ]
        inputs = features.permute(0, 3, 1, 2) if features.ndim == 4 else features
        return {"inputs": inputs, "data_samples": samples, "features": True}


@LOOPS.register_module()
class FrozenTrainLoop(ExactTrainLoop):
    """Computes the feature maps of a frozen trunk once, and trains the rest on them.

    Args:
        *args: Those of ``ExactTrainLoop``.
        freeze_to: The last frozen layer (see ``LayerTrunk``), or ``backbone`` for all but the head.
        views: Augmented views of each photo; epoch e takes view e modulo this.
        **kwargs: Those of ``ExactTrainLoop``.
    """

    dataloader: Any  # MMEngine's loop has it
    photos_of = "train_dataloader"  # the config's name of the loader that training photos come from

    def __init__(self, *args, freeze_to: str, views: int = 4, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.freeze_to, self.views = freeze_to, views

    def run(self) -> nn.Module:
        """Compute, then train as ever; checkpoints hold the whole network."""
        if self.nothing_left():  # no features are needed
            return super().run()
        if get_world_size() > 1:
            raise InputError("--freeze-to works in one process", "leave --launcher away")
        trunk = self._trunk(self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model)
        self._compute(trunk)
        with trunk.aside():
            return self._train(trunk)

    def _trunk(self, model: BaseModel) -> Trunk:
        return BackboneTrunk(model) if self.freeze_to == WHOLE else LayerTrunk(model, self.freeze_to)

    def _compute(self, trunk: Trunk) -> None:
        val_loop = self.runner.val_loop
        self.dataloader = self._with_features(trunk, self.dataloader, self.views, self.photos_of)
        if val_loop is not None:
            val_loop.dataloader = self._with_features(trunk, val_loop.dataloader, 1, "val_dataloader")

    def _train(self, trunk: Trunk) -> nn.Module:
        return super().run()

    @torch.no_grad()
    def _with_features(self, trunk: Trunk, loader: DataLoader, views: int, name: str) -> DataLoader:
        """The batches of a loader, which the config calls ``name``, with feature maps in place of photos."""
        dataset: Any = loader.dataset
        batches: Any = loader.batch_sampler
        model, count, size = trunk.model.eval(), len(dataset), batches.batch_size
        folded: Trunk | None = None
        draws = [Draw(view, 0, 0, index) for view in range(views) for index in range(count)]
        photos = DataLoader(
            dataset,
            batch_sampler=[draws[start : start + size] for start in range(0, len(draws), size)],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        features: Tensor | None = None
        for number, batch in enumerate(progress(photos, total=len(photos), what="features of the frozen trunk")):
            found = None
            try:
                with self._precision():
                    inputs = model.data_preprocessor(batch, False)["inputs"]
                    if folded is None:
                        trunk.check(inputs[:4])
                        folded = self._trunk(fold_batchnorm(model, inputs[:4]))
                    found = folded(inputs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if found is None:  # outside of the handler, which holds on to the memory of the failed pass
                raise OutOfMemory(name, size, size // 2)
            if found.ndim == 4:
                found = found.permute(0, 2, 3, 1)
            if features is None:
                shape = (views * count, *found.shape[1:])
                features = _allocate(shape, torch.float16, found.device)
            largest = float(found.abs().max())
            if features.dtype == torch.float16 and largest > torch.finfo(torch.float16).max:
                features = _allocate(features.shape, found.dtype, found.device).copy_(features)
                kind = str(found.dtype).removeprefix("torch.")
                self.runner.logger.info(f"feature maps reach {largest:.3g}, beyond float16: stored as {kind}")
            start = number * size
            features[start : start + len(found)] = found
        assert features is not None  # a loader has photos
        features = features.view(views, count, *features.shape[1:])
        return DataLoader(FeatureDataset(dataset, features), batch_sampler=batches, collate_fn=_as_it_is)

    def _precision(self) -> Any:
        """That of the training."""
        wrapper = self.runner.optim_wrapper
        return wrapper.precision() if hasattr(wrapper, "precision") else nullcontext()


def _as_it_is(batch: Any) -> Any:
    return batch


def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor for feature maps: on a GPU that has room for them, else in the host's memory.

    Raises:
        InputError: They don't fit into the host's memory beside everything else, where the system says what is free.
    """
    needed = math.prod(shape) * dtype.itemsize
    if has_room(device, needed):
        return torch.empty(shape, dtype=dtype, device=device)
    free = available_memory()
    if free is not None and needed > MEMORY_SHARE * free:
        raise InputError(
            f"the feature maps need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            "fewer --views, or --freeze-to a later layer, whose maps are smaller",
        )
    return torch.empty(shape, dtype=dtype)


@LOOPS.register_module()
class LinearProbeLoop(FrozenTrainLoop):
    """Fits the classifier alone, by logistic regression on the frozen network's features: a quick look at a dataset.

    The classifier is the last linear layer, see ``classifier_layers``. The photos are seen as the test pipeline makes
    them, without augmentation. Features are standardised; the strength of regularisation is the best of ``STRENGTHS``
    on a fifth of the training photos, which the other four fifths were fitted on.

    Args:
        *args: Those of ``ExactTrainLoop``.
        **kwargs: Those of ``ExactTrainLoop``.
    """

    STRENGTHS = (0.0003, 0.003, 0.03)
    photos_of = "val_dataloader"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, freeze_to=WHOLE, views=1, **kwargs)
        self._max_epochs = 1

    def _trunk(self, model: BaseModel) -> Trunk:
        return ClassifierTrunk(model)

    def _train(self, trunk: Trunk) -> nn.Module:
        assert isinstance(trunk, ClassifierTrunk)  # of ``_trunk``
        self._classifier = trunk.layer
        return super()._train(trunk)

    def _compute(self, trunk: Trunk) -> None:
        if getattr(trunk.model.data_preprocessor, "batch_augments", None):
            self.runner.logger.info("--probe sees every photo without augmentation: no Mixup and no CutMix either")
        loader = copy.deepcopy(self.runner.cfg.val_dataloader)
        dataset: Any = innermost(loader)
        dataset["ann_file"] = "train.txt"
        own, self.dataloader = self.dataloader, self.runner.build_dataloader(loader, seed=self.runner.seed)
        super()._compute(trunk)
        self.dataloader = DataLoader(
            FeatureDataset(own.dataset, self.dataloader.dataset.features),
            batch_sampler=own.batch_sampler,
            collate_fn=_as_it_is,
        )

    def run_epoch(self) -> None:
        """Fit, where an epoch of steps would be."""
        self.runner.call_hook("before_train_epoch")
        dataset = self.dataloader.dataset
        layer = self._classifier
        features, labels = dataset.features[0].float().cpu(), dataset.labels  # L-BFGS reads its loss at each step
        weight, bias = fit_linear(features, labels, layer.out_features, self.STRENGTHS)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        self._iter += len(self.dataloader)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


def fit_linear(features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on standardised features, as a layer on the features as they are.

    PyTorch's L-BFGS, because importing scikit-learn takes longer than all of the fitting.

    Args:
        features: float32 of shape (n, d).
        labels: int64 of shape (n,), below ``classes``.
        classes: Outputs of the layer, of classes without a photo too.
        strengths: Weights of the sum of losses against half the squared weights (scikit-learn's C), ascending, to
            choose from.

    Returns:
        Weight of shape (classes, d) and bias of shape (classes,).
    """
    deviation, mean = torch.std_mean(features, 0, correction=0)
    deviation = deviation + 1e-6
    scaled = (features - mean) / deviation
    held_out = _fifth_of_each_class(labels)
    weight, bias = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
    best, most = strengths[0], -1
    for strength in strengths:
        _minimise(weight, bias, scaled[~held_out], labels[~held_out], strength)
        right = int(((scaled[held_out] @ weight.T + bias).argmax(1) == labels[held_out]).sum())
        if right > most:
            best, most = strength, right
    _minimise(weight, bias, scaled, labels, best)
    weight = weight / deviation
    return weight, bias - weight @ mean


def _fifth_of_each_class(labels: Tensor) -> Tensor:
    """A bool of shape (n,): a fifth of the photos of every class, at random and always the same."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = order[labels[order] == label]
        chosen[own[: len(own) // 5]] = True
    return chosen


@torch.enable_grad()
def _minimise(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, strength: float) -> None:
    """Fit ``weight`` and ``bias`` in place, from the values they have."""
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    search = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        penalty = weight.square().sum() / (2 * strength * len(labels))
        value = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + penalty
        value.backward()
        return value

    search.step(loss)
    for parameter in parameters:
        parameter.requires_grad_(False)
