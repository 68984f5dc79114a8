"""Validation and test with BatchNorm fusion, reading results from the device once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from mmengine.runner import BaseLoop, TestLoop, autocast
from torch.utils._pytree import tree_map

from mmflowers.engine.loops import StoppableValLoop
from mmflowers.engine.memory import is_out_of_memory
from mmflowers.models.classifier import unwrap_model
from mmflowers.registry import LOOPS
from mmflowers.speed.fusion import fold, foldable, in_float32

TOGETHER = 256  # images that a GPU evaluates at once: with a training's batches it would wait for Python


class _Evaluation:
    """An evaluation that keeps features and samples of all batches until its end.

    Args:
        runner: Its model is evaluated, with BatchNorm fusion (``fold_batchnorm``).
        precision: Returns the context of each forward pass of the backbone; the head computes in float32.
    """

    def __init__(self, runner: Any, precision: Callable[[], AbstractContextManager]) -> None:
        self._model = unwrap_model(runner.model)
        self._precision = precision
        on_gpu = next(self._model.parameters()).device.type == "cuda"
        self._together = TOGETHER if on_gpu else 1
        self._foldable: list[tuple[str, str]] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the previous evaluation, whose weights may have been others."""
        self._network: Any = None  # from the first batch on the model, or its fused copy
        self._waiting: list[torch.Tensor] = []
        self._features: list[Any] = []  # tuples of maps, or what else the backbone returns
        self._samples: list[list] = []

    @torch.no_grad()
    def take(self, data_batch: dict) -> None:
        """Compute the features of a batch, on a GPU of several batches together, without waiting for the device."""
        data = self._model.data_preprocessor(data_batch, False)
        inputs = data["inputs"]
        if self._foldable is None:
            self._foldable = [] if data_batch.get("features") else foldable(self._model, inputs[:2])
        if self._network is None:
            self._network = fold(self._model, self._foldable) if self._foldable else self._model
        if self._waiting and self._waiting[0].shape[1:] != inputs.shape[1:]:
            self._compute()
        self._waiting.append(inputs)
        self._samples.append(data["data_samples"])
        if sum(map(len, self._waiting)) >= self._together:
            self._compute()

    def _compute(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            self._features.append(self._extract(torch.cat(waiting) if len(waiting) > 1 else waiting[0]))
            return
        except Exception as error:
            if len(waiting) == 1 or not is_out_of_memory(error):
                raise
        self._together = 1
        self._features.extend(map(self._extract, waiting))

    def _extract(self, inputs: torch.Tensor) -> Any:
        with self._precision():
            return in_float32(self._network.extract_feat(inputs))

    @torch.no_grad()
    def finish(self, evaluator: Any) -> None:
        """Predict from all features at once, and pass the predictions to the evaluator batch by batch."""
        if self._waiting:
            self._compute()
        samples = [sample for batch in self._samples for sample in batch]
        features = tree_map(lambda *parts: parts[0] if parts[0] is None else torch.cat(parts), *self._features)
        predicted = self._model.head.predict(features, samples)
        for name in ("pred_score", "pred_label", "gt_label"):  # each is copied from the device in one go
            if all(name in sample for sample in predicted):
                values = torch.stack([sample.get(name) for sample in predicted]).cpu()
                for sample, value in zip(predicted, values, strict=True):
                    sample.set_field(value, name)
        predicted = iter(predicted)
        for batch in self._samples:
            evaluator.process(data_samples=list(islice(predicted, len(batch))), data_batch=None)
        self.begin()  # frees the memory for the training


class _FastLoop(BaseLoop):
    """The common part of ``FastValLoop`` and ``FastTestLoop``."""

    name: str  # of MMEngine's hooks: "val" or "test"
    evaluator: Any

    def _precision(self) -> AbstractContextManager:
        raise NotImplementedError

    @cached_property
    def _evaluation(self) -> _Evaluation:
        return _Evaluation(self.runner, self._precision)

    def run(self) -> dict:
        """Evaluate, and return the metrics of the config's evaluator."""
        runner, name = self.runner, self.name
        runner.call_hook(f"before_{name}")
        runner.call_hook(f"before_{name}_epoch")
        runner.model.eval()
        self._evaluation.begin()
        for idx, data_batch in enumerate(self.dataloader):
            self.run_iter(idx, data_batch)
        self._finish()
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook(f"after_{name}_epoch", metrics=metrics)
        runner.call_hook(f"after_{name}")
        return metrics

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Evaluate one batch."""
        self._forward(idx, data_batch)

    def _forward(self, idx: int, data_batch: dict) -> None:
        self.runner.call_hook(f"before_{self.name}_iter", batch_idx=idx, data_batch=data_batch)
        self._evaluation.take(data_batch)
        self.runner.call_hook(f"after_{self.name}_iter", batch_idx=idx, data_batch=data_batch, outputs=None)

    def _finish(self) -> None:
        self._evaluation.finish(self.evaluator)


@LOOPS.register_module()
class FastValLoop(_FastLoop, StoppableValLoop):
    """Validate with BatchNorm fusion in the precision of the training, and read the results from the device once."""

    name = "val"

    def _precision(self) -> AbstractContextManager:
        return getattr(self.runner.optim_wrapper, "precision", nullcontext)()

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Validate one batch; a signal ends the validation."""
        StoppableValLoop.run_iter(self, idx, data_batch)

    def _finish(self) -> None:
        self._require_memory(super()._finish)


@LOOPS.register_module()
class FastTestLoop(_FastLoop, TestLoop):
    """Test with BatchNorm fusion: in float32, or with ``fp16`` in bfloat16 on a CPU and float16 on a GPU."""

    name = "test"

    def _precision(self) -> AbstractContextManager:
        return autocast(enabled=self.fp16)
