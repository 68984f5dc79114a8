"""Training and validation loops that a signal can stop after any iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from mmengine.dist import broadcast, get_rank, get_world_size
from mmengine.runner import EpochBasedTrainLoop, ValLoop

from mmflowers.datasets.seeded import STEPS, SeededSampler, seed_generators
from mmflowers.engine.finite_loss import FiniteLoss
from mmflowers.engine.memory import OutOfMemory, batch_size_of, fits_into_memory, largest_batch
from mmflowers.engine.signals import StopSignal
from mmflowers.registry import LOOPS


@LOOPS.register_module()
class ExactTrainLoop(EpochBasedTrainLoop):
    """MMEngine's loop over epochs, whose result is the same whether it was interrupted or not.

    - All random numbers follow from the run's seed and the position: from epoch and photo in the loader
      (``SeededDataset``), from the iteration here. So no state of a generator is saved.
    - SIGTERM and SIGINT end the current iteration, save ``last.pth`` and end the process; a second signal ends it at
      once. With several processes, all stop after the same iteration.
    - A loss that isn't finite stops the run before a checkpoint is written.
    - ``last.pth`` is saved before each validation (``BestAndLastHook``): a run that was stopped during a validation
      starts with that validation when it is resumed.

    Args:
        *args: See ``EpochBasedTrainLoop``.
        loss_interval: Iterations between two looks at the loss (``FiniteLoss``).
        **kwargs: See ``EpochBasedTrainLoop``.

    Attributes:
        epoch_iter: Iterations done in the current epoch.
    """

    epoch_iter = 0

    def __init__(self, *args, loss_interval: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.stop_signal = StopSignal()
        self._loss = FiniteLoss(loss_interval)

    def run(self) -> torch.nn.Module:
        """Train to the last epoch."""
        with self.stop_signal.handled():
            self.runner.call_hook("before_train")
            self._decide_current_val_interval()
            if self.nothing_left():
                epochs = self._max_epochs
                self.runner.logger.info(f"nothing left to train: epoch {epochs} of {epochs} is done")
            if self._epoch and not self.epoch_iter:
                self._validate()  # an epoch that ended before the run was resumed
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._decide_current_val_interval()
                self._validate()
            self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train one epoch, or the rest of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        sampler = getattr(self.dataloader.batch_sampler, "sampler", None)
        if isinstance(sampler, SeededSampler):
            sampler.start = self.epoch_iter * self.batch_size
        for idx, data_batch in self._batches():
            self.run_iter(idx, data_batch)
        if isinstance(sampler, SeededSampler):
            sampler.start = 0  # hooks may iterate over the loader
        for buffer in self.runner.model.buffers() if get_world_size() > 1 else ():
            broadcast(buffer, 0)  # a checkpoint holds the first process's BatchNorm statistics
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self.epoch_iter = 0

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train on one batch, and stop here if a signal came."""
        runner = self.runner
        seed_generators(runner.seed, STEPS, get_rank(), self._iter)
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        outputs: dict[str, Any] = {}
        if not fits_into_memory(
            lambda: outputs.update(runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper))
        ):
            fits = largest_batch(runner, data_batch, self.batch_size)
            raise OutOfMemory("train_dataloader", self.batch_size, fits)
        self._loss.check(self, outputs, data_batch)
        runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
        self.epoch_iter += 1
        # Within an accumulation each process has gradients of its own, which one checkpoint can't hold.
        if self.stop_signal.agreed_in_time(may_stop=runner.optim_wrapper.should_update()):
            self._save_and_stop()

    @property
    def batch_size(self) -> int:
        """Photos of a batch of this process."""
        return batch_size_of(self.dataloader)

    def nothing_left(self) -> bool:
        """Whether the resumed checkpoint was written after the last epoch and its validation."""
        return self._epoch >= self._max_epochs and not self._validation_due()

    def stop_in(self, place: str) -> NoReturn:
        """End the process after a signal, when all checkpoints are on the disk."""
        self.runner.finish_saving()
        self.runner.logger.info(f"stopped {place}; --resume goes on there")
        self.stop_signal.end()

    def _batches(self) -> Iterator[tuple[int, dict]]:
        """Yield the rest of the epoch's batches with their numbers."""
        batches = enumerate(self.dataloader, self.epoch_iter)
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError:
                if self.stop_signal.number and get_world_size() == 1:  # the signal ended the loader's workers too
                    self._save_and_stop()
                raise
            if batch is None:
                return
            yield batch

    def _validation_due(self) -> bool:
        """Whether the current epoch is to be validated and hasn't been."""
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        done = self.runner.message_hub.get_info("epoch_validated", default=None) == self._epoch
        return self.runner.val_loop is not None and self._epoch >= self.val_begin and due and not done

    def _validate(self) -> None:
        """Run the validation if it is due."""
        if self._validation_due():
            self.runner.val_loop.run()
            self.runner.message_hub.update_info("epoch_validated", self._epoch)
            if self.stop_signal.agreed():
                self._save_and_stop()

    def _save_and_stop(self) -> NoReturn:
        self.runner.save_last()
        self.stop_in(f"in epoch {self._epoch + 1} after {self.epoch_iter} iterations")


@LOOPS.register_module()
class StoppableValLoop(ValLoop):
    """MMEngine's validation, which a signal to the training ends at once: ``last.pth`` was saved before it."""

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Validate one batch."""
        train_loop = self.runner._train_loop
        # Several processes may have different numbers of batches, so they can't agree here: they finish the validation.
        if isinstance(train_loop, ExactTrainLoop) and get_world_size() == 1 and train_loop.stop_signal.number:
            train_loop.stop_in(f"in the validation of epoch {train_loop.epoch}")
        self._require_memory(lambda: self._forward(idx, data_batch))

    def _require_memory(self, step: Callable[[], object]) -> None:
        if not fits_into_memory(step):
            size = batch_size_of(self.dataloader)
            raise OutOfMemory("val_dataloader", size, size // 2)

    def _forward(self, idx: int, data_batch: dict) -> None:
        super().run_iter(idx, data_batch)
