"""A training loop that can stop after any iteration and continue there with the same results."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size
from mmengine.runner import EpochBasedTrainLoop, ValLoop

from mmflowers.datasets.seeded import STEPS, SeededSampler, seed_generators
from mmflowers.engine.memory import OutOfMemory, _batch_size, is_out_of_memory
from mmflowers.registry import LOOPS
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import write_text
from mmflowers.utils.terminal import Stopped, on_terminal

ONE_SIGNAL = 0.5  # seconds; `timeout` and the like signal the process and its group, which are two signals to it
NAMED = 3  # files of a batch that an error names; the list beside the run has all
BATCH_LIST = "stopped_at_batch.txt"


@LOOPS.register_module()
class ExactTrainLoop(EpochBasedTrainLoop):
    """MMEngine's epochs, made so that interruptions don't show in the result.

    - Everything random is a function of the run's seed and of the place: of epoch and photo in the loader
      (``SeededDataset``), of the iteration here. Nothing is left to be remembered, whatever was drawn before.
    - SIGTERM and SIGINT end the iteration under way, write ``last.pth`` there and then end the process; a second one
      ends it at once. Of several processes all stop after the same iteration.
    - A loss that isn't finite stops the run before any checkpoint is touched.
    - ``last.pth`` lies on the disk before a validation begins (``BestAndLastHook``): a run that was stopped within it
      is validated first when it goes on.

    Args:
        *args: Those of ``EpochBasedTrainLoop``.
        loss_interval: Look at the loss every so many iterations, and at the end of an epoch. Each look waits for the
            GPU to finish what it was given.
        **kwargs: Those of ``EpochBasedTrainLoop``.

    Attributes:
        epoch_iter: Iterations done in the current epoch.
    """

    epoch_iter = 0
    _signal: int | None = None
    _sum: Any = None  # of the losses since the last look: one that isn't finite makes the sum so

    def __init__(self, *args, loss_interval: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.loss_interval = loss_interval

    def run(self) -> torch.nn.Module:
        """Train to the last epoch."""
        with self._signals():
            self.runner.call_hook("before_train")
            self._decide_current_val_interval()
            if self.nothing_left():
                epochs = self._max_epochs
                self.runner.logger.info(f"nothing left to train: epoch {epochs} of {epochs} is done")
            if self._epoch and not self.epoch_iter:
                self._validate()  # the epoch that a resumed run had finished, if it hadn't come to that
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._decide_current_val_interval()
                self._validate()
            self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train one epoch, or what is left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        sampler = getattr(self.dataloader.batch_sampler, "sampler", None)
        if isinstance(sampler, SeededSampler):
            sampler.start = self.epoch_iter * self.batch_size
        for idx, data_batch in self._batches():
            self.run_iter(idx, data_batch)
        if isinstance(sampler, SeededSampler):
            sampler.start = 0  # hooks may go through the loader
        self._share_buffers()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self.epoch_iter = 0

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train on one batch, and stop here if a signal has come."""
        runner = self.runner
        seed_generators(runner.seed, STEPS, get_rank(), self._iter)
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        try:
            outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            outputs = None
        if outputs is None:  # outside of the handler, which holds on to the memory of the failed step
            fits = self._largest_batch(data_batch)
            divisors = [size for size in range(1, fits + 1) if self.batch_size % size == 0]
            raise OutOfMemory("train_dataloader", self.batch_size, max(divisors, default=0))
        self._check_finite(outputs, data_batch)
        runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
        self.epoch_iter += 1
        # Amid an accumulation each process has gradients of its own: with several, the stop waits for their update.
        if (get_world_size() == 1 or runner.optim_wrapper.should_update()) and self._asked_to_stop():
            self._stop()

    @property
    def batch_size(self) -> int:
        """Photos of a batch of this process."""
        return _batch_size(self.dataloader)

    def _share_buffers(self) -> None:
        """Give all processes the first one's statistics of BatchNorm: those that the checkpoint will hold."""
        for buffer in self.runner.model.buffers() if get_world_size() > 1 else ():
            broadcast(buffer, 0)

    def nothing_left(self) -> bool:
        """Whether the checkpoint that is resumed was written after the last epoch and its validation."""
        return self._epoch >= self._max_epochs and not self._validation_due()

    def _validation_due(self) -> bool:
        """Whether the epochs done so far are to be validated and haven't been."""
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        done = self.runner.message_hub.get_info("epoch_validated", default=None) == self._epoch
        return self.runner.val_loop is not None and self._epoch >= self.val_begin and due and not done

    def _validate(self) -> None:
        """Run the validation of the epochs done so far, if it is due and hasn't been run."""
        if self._validation_due():
            self.runner.val_loop.run()
            self.runner.message_hub.update_info("epoch_validated", self._epoch)
            if self._asked_to_stop():
                self._stop()

    def _batches(self) -> Iterator[tuple[int, dict]]:
        batches = enumerate(self.dataloader, self.epoch_iter)
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError:
                if self._signal and get_world_size() == 1:  # it was meant for the loader's workers as well
                    self._stop()
                raise
            if batch is None:
                return
            yield batch

    def _check_finite(self, outputs: dict[str, Any], data_batch: dict) -> None:
        loss = outputs.get("loss")
        if loss is None:
            return
        loss = torch.as_tensor(loss).detach()
        self._sum = loss if self._sum is None else self._sum + loss
        last = self.epoch_iter + 1 == len(self.dataloader)
        if not last and (self.epoch_iter + 1) % self.loss_interval:
            return
        loss, self._sum = self._sum, None
        if bool(torch.isfinite(loss).all()):
            return
        files = [str(sample.get("img_path", "?")) for sample in data_batch.get("data_samples", [])]
        listed = Path(self.runner.work_dir) / BATCH_LIST
        write_text(listed, "".join(f"{file}\n" for file in files))
        (rate, *_) = self.runner.optim_wrapper.get_lr()["lr"]
        among = f" or one of the {self.loss_interval - 1} before it" if self.loss_interval > 1 else ""
        raise InputError(
            f"the loss became {float(loss)} in epoch {self._epoch + 1}, iteration {self._iter + 1}{among}, "
            f"at a learning rate of {rate:.3g}, with {', '.join(files[:NAMED])} and others (all in {listed})",
            "try a lower learning rate; the checkpoints are of before",
        )

    def _largest_batch(self, data_batch: dict) -> int:
        """Halve the batch until a training step fits. It spoils the weights: the run ends here or starts again."""
        size = len(data_batch["inputs"]) // 2
        while size and get_world_size() == 1:  # the other processes don't know: half is a guess there
            self.runner.optim_wrapper.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            part = {name: values if isinstance(values, bool) else values[:size] for name, values in data_batch.items()}
            try:
                self.runner.model.train_step(part, optim_wrapper=self.runner.optim_wrapper)
                return size
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            size //= 2
        return size

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT down for the next good moment; the second one does what it did before."""
        before: dict[int, Any] = {}
        asked_at = 0.0

        def ask(signum: int, frame: object) -> None:
            nonlocal asked_at
            if self._signal is None:
                asked_at = time.monotonic()
                self._signal = signum
                if hasattr(signal, "SIGCHLD"):  # workers that the signal has reached too are no error now
                    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
                wipe = b"\r\x1b[K" if on_terminal() else b""  # a bar
                told = b"stopping after this iteration; a second signal stops at once\n"
                os.write(2, wipe + told)  # print isn't reentrant
            elif time.monotonic() - asked_at > ONE_SIGNAL:
                restore()
                signal.raise_signal(signum)

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            before.clear()

        if threading.current_thread() is threading.main_thread():  # signals come to no other
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            restore()

    def _asked_to_stop(self) -> bool:
        """Whether a signal has come to this process or, of several, to any."""
        if get_world_size() > 1:
            asked = torch.tensor(self._signal or 0)
            all_reduce(asked, "max")
            self._signal = int(asked) or None
        return self._signal is not None

    def _stop(self) -> NoReturn:
        self.runner.save_last()
        self._leave(f"in epoch {self._epoch + 1} after {self.epoch_iter} iterations")

    def _leave(self, place: str) -> NoReturn:
        self.runner.finish_saving()
        self.runner.logger.info(f"stopped {place}; --resume goes on there")
        assert self._signal is not None  # its callers have seen one
        raise KeyboardInterrupt if self._signal == signal.SIGINT else Stopped(self._signal)


@LOOPS.register_module()
class StoppableValLoop(ValLoop):
    """MMEngine's validation, which a signal to the training ends at once: nothing is lost by that."""

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Validate one batch."""
        train_loop = self.runner._train_loop
        # Several processes needn't have equally many batches to agree about: they end the validation first.
        if isinstance(train_loop, ExactTrainLoop) and get_world_size() == 1 and train_loop._asked_to_stop():
            train_loop._leave(f"in the validation of epoch {train_loop.epoch}")
        self._within_memory(self._forward, idx, data_batch)

    def _within_memory(self, step: Callable, *arguments: Any) -> None:
        try:
            step(*arguments)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size = _batch_size(self.dataloader)
        raise OutOfMemory("val_dataloader", size, size // 2)

    def _forward(self, idx: int, data_batch: dict) -> None:
        super().run_iter(idx, data_batch)
