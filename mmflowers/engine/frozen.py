"""Training of a network's last part on what a frozen trunk makes of the photos, computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmpretrain.registry import LOOPS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmflowers.commands import progress
from mmflowers.datasets.seeded import Draw
from mmflowers.datasets.wrappers import innermost
from mmflowers.engine.loops import ExactTrainLoop
from mmflowers.errors import InputError
from mmflowers.models.folding import fold_batchnorm

WHOLE = "backbone"  # all but the head
MEMORY_SHARE = 0.5  # of the memory that is free, for feature maps


class _Reached(Exception):
    """The trunk's end was reached: what comes after needn't be computed."""

    def __init__(self, output: Any) -> None:
        self.output = output


class Trunk:
    """The part of a classifier up to a layer, which can stand aside while the rest takes its feature maps.

    Args:
        model: An MMPretrain classifier.
        name: The last frozen layer, as the backbone calls it (``layer3``, ``blocks.4``), or ``backbone`` for all of it.

    Raises:
        InputError: The backbone has no such layer; the ones it has are named.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        if name == WHOLE:
            self.last = model.neck if model.with_neck else model.backbone
            self.modules = [model.backbone, self.last]
            return
        root = getattr(model.backbone, "timm_model", model.backbone)
        self.modules, module = [], root
        for part in name.split("."):
            children = dict(module.named_children())
            if part not in children:
                known = [f"{child}.{n}" for child in ("blocks", "layers", "stages") for n, _ in _children(root, child)]
                known = known or [child for child, _ in root.named_children()]
                raise InputError(
                    f"the backbone has no layer {name} to freeze to", f"it has {', '.join(known)}, or {WHOLE} for all"
                )
            names = list(children)
            self.modules += [children[before] for before in names[: names.index(part)]]
            module = children[part]
        self.modules.append(module)
        self.last = module

    def __call__(self, inputs: Tensor) -> Tensor:
        """The last frozen layer's output for normalised pixels (n, 3, H, W): (n, C, H', W'), or (n, C) after a neck."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        handle = self.last.register_forward_hook(stop)
        try:
            self.model.extract_feat(inputs)
        except _Reached as reached:
            return reached.output[-1] if isinstance(reached.output, tuple) else reached.output
        finally:
            handle.remove()
        raise InputError("the network doesn't come to the layer to freeze to", "name another")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the network begin behind the trunk: its inputs are feature maps. State dict and parameters stay."""
        whole = self.modules[0] is self.model.backbone
        for module in self.modules:
            module.forward = _pass_on
        if whole:
            self.last.forward = _wrap  # heads take a tuple
        try:
            yield
        finally:
            for module in set(self.modules):
                del module.forward

    def check(self, inputs: Tensor) -> None:
        """See that trunk and rest together are the network.

        Raises:
            InputError: They aren't: the network has paths around the layer.
        """
        expected = self.model(inputs, mode="tensor")
        features = self(inputs)
        with self.aside():
            got = self.model(features, mode="tensor")
        expected, got = (value[-1] if isinstance(value, tuple) else value for value in (expected, got))
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.01, atol=0.01):
            raise InputError("the network can't be cut there", "freeze to the end of a stage, as layer3 or blocks.4")


def _pass_on(x: Tensor) -> Tensor:
    return x


def _wrap(x: Tensor) -> tuple[Tensor]:
    return (x,)


def _children(root: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    child = getattr(root, name, None)
    return list(child.named_children()) if isinstance(child, nn.Module) else []


class FeatureDataset(Dataset):
    """Feature maps of a dataset's photos, in one or several augmented views, taken in turn epoch by epoch.

    Args:
        dataset: The ``SeededDataset`` of the photos, for all else that is asked of a dataset.
        features: float16 of shape (views, n, …), channels last.
    """

    def __init__(self, dataset: Dataset, features: Tensor) -> None:
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
        indices = torch.tensor([draw.index for draw in draws])
        features = self.features[draws[0].epoch % len(self.features)][indices]
        samples = [
            DataSample(metainfo={"img_path": self.paths[index], "sample_idx": index}).set_gt_label(label)
            for index, label in zip(indices.tolist(), self.labels[indices].split(1), strict=True)
        ]
        inputs = features.permute(0, 3, 1, 2) if features.ndim == 4 else features
        return {"inputs": inputs, "data_samples": samples, "features": True}


@LOOPS.register_module()
class FrozenTrainLoop(ExactTrainLoop):
    """Computes the feature maps of a frozen trunk once, and trains the rest on them.

    Args:
        *args: Those of ``ExactTrainLoop``.
        freeze_to: The last frozen layer (see ``Trunk``).
        views: Augmented views of each photo; epoch e takes view e modulo this.
        **kwargs: Those of ``ExactTrainLoop``.
    """

    def __init__(self, *args, freeze_to: str, views: int = 4, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.freeze_to, self.views = freeze_to, views

    def run(self) -> nn.Module:
        """Compute, then train as ever; checkpoints hold the whole network."""
        if get_world_size() > 1:
            raise InputError("--freeze-to works in one process", "leave --launcher away")
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        trunk = Trunk(model, self.freeze_to)
        self._compute(trunk)
        with trunk.aside():
            return self._train()

    def _compute(self, trunk: Trunk) -> None:
        val_loop = self.runner.val_loop
        self.dataloader = self._with_features(trunk, self.dataloader, self.views)
        if val_loop is not None:
            val_loop.dataloader = self._with_features(trunk, val_loop.dataloader, 1)

    def _train(self) -> nn.Module:
        return super().run()

    @torch.no_grad()
    def _with_features(self, trunk: Trunk, loader: DataLoader, views: int) -> DataLoader:
        """The loader's batches with feature maps in place of photos."""
        model, count = trunk.model.eval(), len(loader.dataset)
        folded: Trunk | None = None
        size = loader.batch_sampler.batch_size
        draws = [Draw(view, 0, 0, index) for view in range(views) for index in range(count)]
        photos = DataLoader(
            loader.dataset,
            batch_sampler=[draws[start : start + size] for start in range(0, len(draws), size)],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        features: Tensor | None = None
        for number, batch in enumerate(progress(photos, total=len(photos), what="features of the frozen trunk")):
            with self._precision():
                inputs = model.data_preprocessor(batch, False)["inputs"]
                if folded is None:
                    trunk.check(inputs[:4])
                    folded = Trunk(fold_batchnorm(model, inputs[:4]), self.freeze_to)
                found = folded(inputs)
            if found.ndim == 4:
                found = found.permute(0, 2, 3, 1)
            if features is None:
                shape = (views * count, *found.shape[1:])
                _require_memory(2 * int(np.prod(shape)))
                features = torch.empty(shape, dtype=torch.float16)
            start = number * size
            features[start : start + len(found)] = found.cpu()
        features = features.view(views, count, *features.shape[1:])
        dataset = FeatureDataset(loader.dataset, features)
        return DataLoader(dataset, batch_sampler=loader.batch_sampler, collate_fn=_as_it_is)

    def _precision(self) -> Any:
        """That of the training."""
        wrapper = self.runner.optim_wrapper
        return wrapper.precision() if hasattr(wrapper, "precision") else nullcontext()


def _as_it_is(batch: dict) -> dict:
    return batch


def _require_memory(needed: int) -> None:
    """Refuse feature maps that don't fit beside everything else, where the system says what is free (Linux)."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:") and needed > MEMORY_SHARE * int(line.split()[1]) * 1024:
            raise InputError(
                f"the feature maps need {needed / 1e9:.1f} GB of memory, {int(line.split()[1]) / 1e6:.1f} GB are free",
                "fewer --views, or --freeze-to a later layer, whose maps are smaller",
            )


@LOOPS.register_module()
class LinearProbeLoop(FrozenTrainLoop):
    """Fits the head alone, by logistic regression on the frozen network's features: a quick look at a dataset.

    The photos are seen as the test pipeline makes them. Features are standardised; the strength of regularisation is
    the best of ``STRENGTHS`` on a fifth of the training photos, which the other four fifths were fitted on.

    Args:
        *args: Those of ``ExactTrainLoop``.
        **kwargs: Those of ``ExactTrainLoop``.
    """

    STRENGTHS = (0.0003, 0.003, 0.03)

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, freeze_to=WHOLE, views=1, **kwargs)
        self._max_epochs = 1

    def _compute(self, trunk: Trunk) -> None:
        loader = copy.deepcopy(self.runner.cfg.val_dataloader)
        innermost(loader)["ann_file"] = "train.txt"
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
        head = self.runner.model.head.fc
        features, labels = dataset.features[0].float(), dataset.labels
        weight, bias = fit_linear(features, labels, head.out_features, self.STRENGTHS)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
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
