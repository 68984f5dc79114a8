"""Validation and test with BatchNorm fusion, reading results from the device once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import TestLoop, autocast
from torch.utils._pytree import tree_map

from mmflowers.engine.loops import StoppableValLoop
from mmflowers.engine.memory import is_out_of_memory
from mmflowers.registry import LOOPS
from mmflowers.speed.fusion import fold, foldable, in_float32

TOGETHER = 256  # images that a GPU evaluates at once: with a training's batches it would wait for Python


class _Evaluation:
    """What a fast loop keeps of an evaluation until its end: features and samples, batch by batch.

    Args:
        runner: Whose model is evaluated, with its norms folded (``fold_batchnorm``).
        precision: Makes the context of each forward pass of the backbone; the head computes in float32.
    """

    def __init__(self, runner: Any, precision: Callable[[], AbstractContextManager]) -> None:
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._precision = precision
        on_gpu = next(self._model.parameters()).device.type == "cuda"
        self._together = TOGETHER if on_gpu else 1
        self._foldable: list[tuple[str, str]] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the last one, whose weights may have been others."""
        self._network: Any = None  # from the first batch on the model, or its folded copy
        self._waiting: list[torch.Tensor] = []
        self._features: list[Any] = []  # tuples of maps, or what else the backbone gives
        self._samples: list[list] = []

    @torch.no_grad()
    def take(self, data_batch: dict) -> None:
        """Compute a batch, on a GPU some together; nothing is waited for."""
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
    def judge(self, evaluator: Any) -> None:
        """Give the evaluator its batches, with what the head makes of all features; off the device in one go."""
        if self._waiting:
            self._compute()
        samples = [sample for batch in self._samples for sample in batch]
        features = tree_map(lambda *parts: parts[0] if parts[0] is None else torch.cat(parts), *self._features)
        judged = self._model.head.predict(features, samples)
        for name in ("pred_score", "pred_label", "gt_label"):
            if all(name in sample for sample in judged):
                values = torch.stack([sample.get(name) for sample in judged]).cpu()
                for sample, value in zip(judged, values, strict=True):
                    sample.set_field(value, name)
        judged = iter(judged)
        for batch in self._samples:
            evaluator.process(data_samples=list(islice(judged, len(batch))), data_batch=None)
        self.begin()  # what it kept is the training's memory again


@LOOPS.register_module()
class FastValLoop(StoppableValLoop):
    """Validates with folded norms in the precision of the training, and takes the results off the device at the end."""

    @cached_property
    def _evaluation(self) -> _Evaluation:
        return _Evaluation(self.runner, getattr(self.runner.optim_wrapper, "precision", nullcontext))

    def run(self) -> dict:
        """Validate; the metrics are those of the config's evaluator."""
        runner = self.runner
        runner.call_hook("before_val")
        runner.call_hook("before_val_epoch")
        runner.model.eval()
        self._evaluation.begin()
        for idx, data_batch in enumerate(self.dataloader):
            self.run_iter(idx, data_batch)
        self._within_memory(self._evaluation.judge, self.evaluator)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook("after_val_epoch", metrics=metrics)
        runner.call_hook("after_val")
        return metrics

    def _forward(self, idx: int, data_batch: dict) -> None:
        self.runner.call_hook("before_val_iter", batch_idx=idx, data_batch=data_batch)
        self._evaluation.take(data_batch)
        self.runner.call_hook("after_val_iter", batch_idx=idx, data_batch=data_batch, outputs=None)


@LOOPS.register_module()
class FastTestLoop(TestLoop):
    """Tests as ``FastValLoop`` validates: in float32, or with ``fp16`` in bfloat16 on a CPU and float16 on a GPU."""

    def run(self) -> dict:
        """Test; the metrics are those of the config's evaluator."""
        runner = self.runner
        runner.call_hook("before_test")
        runner.call_hook("before_test_epoch")
        runner.model.eval()
        evaluation = _Evaluation(runner, partial(autocast, enabled=self.fp16))
        for idx, data_batch in enumerate(self.dataloader):
            runner.call_hook("before_test_iter", batch_idx=idx, data_batch=data_batch)
            evaluation.take(data_batch)
            runner.call_hook("after_test_iter", batch_idx=idx, data_batch=data_batch, outputs=None)
        evaluation.judge(self.evaluator)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook("after_test_epoch", metrics=metrics)
        runner.call_hook("after_test")
        return metrics
