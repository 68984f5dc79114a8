"""Linear probe: fit only the classifier, on features of the frozen network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from mmengine.model import BaseModel
from torch import Tensor

from mmflowers.datasets.wrappers import dataset_of
from mmflowers.frozen.loops import FrozenTrainLoop, feature_loader
from mmflowers.frozen.parts import WHOLE, FrozenNetwork, FrozenPart
from mmflowers.registry import LOOPS


@LOOPS.register_module()
class LinearProbeLoop(FrozenTrainLoop):
    """Fit the classifier alone by logistic regression on precomputed features: a quick estimate for a dataset.

    The classifier is the last linear layer, see ``classifier_layers``. Photos go through the test pipeline, without
    augmentation. Features are standardised. The strength of regularisation is the one of ``STRENGTHS`` with the best
    accuracy on a fifth of the training photos, after a fit on the other four fifths.

    Args:
        *args: See ``ExactTrainLoop``.
        **kwargs: See ``ExactTrainLoop``.
    """

    STRENGTHS = (0.0003, 0.003, 0.03)
    photos_of = "val_dataloader"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, freeze_to=WHOLE, views=1, **kwargs)
        self._max_epochs = 1

    def _frozen_part(self, model: BaseModel) -> FrozenPart:
        return FrozenNetwork(model)

    def _precompute(self, frozen: FrozenPart) -> None:
        assert isinstance(frozen, FrozenNetwork)
        self._classifier = frozen.layer
        if getattr(frozen.model.data_preprocessor, "batch_augments", None):
            self.runner.logger.info("--probe uses no augmentation: no Mixup and no CutMix either")
        config = copy.deepcopy(self.runner.cfg)
        dataset_of(config, self.photos_of)["ann_file"] = "train.txt"
        own, self.dataloader = (
            self.dataloader,
            self.runner.build_dataloader(config[self.photos_of], seed=self.runner.seed),
        )
        super()._precompute(frozen)
        self.dataloader = feature_loader(own.dataset, self.dataloader.dataset.features, own.batch_sampler)

    def run_epoch(self) -> None:
        """Fit the classifier, in place of an epoch of steps."""
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
    """Fit a multinomial logistic regression on standardised features, and return it as a layer on the raw features.

    It uses PyTorch's L-BFGS, because importing scikit-learn takes longer than the fit.

    Args:
        features: float32 of shape (n, d).
        labels: int64 of shape (n,), below ``classes``.
        classes: Outputs of the layer, including classes without a photo.
        strengths: Values of scikit-learn's C to choose from, ascending: weights of the sum of losses against half the
            squared weights.

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
    """Return a mask of shape (n,): a random fifth of the photos of every class, always the same."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = order[labels[order] == label]
        chosen[own[: len(own) // 5]] = True
    return chosen


@torch.enable_grad()
def _minimise(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, strength: float) -> None:
    """Fit ``weight`` and ``bias`` in place, starting from their current values."""
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
