"""Linear probe: fit only the classifier, on features of the frozen network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmflowers.datasets.wrappers import innermost
from mmflowers.frozen.loops import FeatureDataset, FrozenTrainLoop, _as_it_is
from mmflowers.frozen.trunks import WHOLE, ClassifierTrunk, Trunk
from mmflowers.registry import LOOPS


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
