"""How fast one training process is: in its Runner, in a bare loop, in validation. ``benchmark`` compares several."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from mmflowers.engine.runner import FlowersRunner
from mmflowers.utils.errors import InputError

# Iterations left out, timed, and watched for host syncs after that. On a GPU they are short, and the batches that its
# loader had ready when the timing began must be few of them.
ON_CPU, ON_GPU = (3, 20, 5), (30, 200, 20)
MB = 1 << 20


class Enough(BaseException):
    """All is measured. Not an Exception, so that no loop's ``except Exception`` keeps it.

    Args:
        results: What was.
    """

    def __init__(self, results: dict | None = None) -> None:
        self.results = results or {}


def measure_rates(config: Config, *, started: float, warmup: int | None, iterations: int | None) -> dict:
    """Train, step on one batch and validate, each as long as its rate takes to be known.

    Nothing is assumed of the config's classes but that the loop calls the hooks and that the length of a batch's
    ``inputs`` is its number of images. The device is waited for where a timed span begins and ends, not within it.

    Args:
        config: A settled one (see ``configure``), with a work dir to be thrown away.
        started: When the process was started, as of ``time.time``.
        warmup: Iterations that are left out, 1 or more; None: 3 on a CPU, 30 on a GPU.
        iterations: Iterations that are timed; None: 20 on a CPU, 200 on a GPU. What lies between epochs (the writing
            of checkpoints) isn't timed, and there is no validation between them.

    Returns:
        - ``images_per_second``: through the Runner, with its loader, hooks and optimizer.
        - ``waiting_share``: its part between an iteration's end and the next batch's arrival on the host. A
          GPU may still be at work then.
        - ``ceiling_images_per_second``: the same model and optim wrapper on one preprocessed batch that lies on the
          device, in a bare loop of forward, backward and step; ``of_ceiling``: the Runner's rate over this one.
        - ``eval_images_per_second``: of the second of two validations, metrics included; None where there is none.
        - ``syncs_per_iteration``: how often the host waited for the device; ``sync_measure`` says what was counted.
        - ``seconds_to_first_batch``, ``seconds_to_first_iteration``: from the start of the process to the beginning of
          its first iteration, whose batch has come from the loader, and to that iteration's end.
        - ``device_peak_mb``, ``device_reserved_mb``: of the training, by torch's allocator; None without CUDA.
        - What they were made of: iterations, images, seconds, device, threads, shape of a batch.

    Raises:
        InputError: The training is too short; or what a training raises.
    """
    defaults = ON_CPU if get_device() == "cpu" else ON_GPU
    watch = TrainWatch(warmup or defaults[0], iterations or defaults[1], defaults[2])
    runner = FlowersRunner.from_cfg(config)
    for hook in (First(watch), Last(watch)):
        runner.register_hook(hook)
    try:
        runner.train()
    except Enough as enough:
        return enough.results | {
            "seconds_to_first_batch": watch.first_came - started,
            "seconds_to_first_iteration": watch.first_done - started,
            "device": get_device(),
            "threads": torch.get_num_threads(),
            "optim_wrapper": type(runner.optim_wrapper).__name__,
        }
    raise InputError(
        f"the training ends after {watch.done} iterations, {watch.wanted} are needed",
        "fewer --iterations, or more epochs: --cfg-options train_cfg.max_epochs=N",
    )


class TrainWatch:
    """Times a training by what its hooks are told.

    Args:
        warmup: Iterations to leave out.
        iterations: Iterations to time after that.
        watched: Iterations to count the host syncs of after that.

    Attributes:
        wanted: All of them.
        done: Iterations so far.
        first_came: When the first batch came, as of ``time.time``.
        first_done: When the first iteration had ended, likewise.
        batch: The first batch as it came from the loader.
    """

    def __init__(self, warmup: int, iterations: int, watched: int) -> None:
        self.warmup, self.iterations, self.watched = warmup, iterations, watched
        self.wanted = warmup + iterations + watched
        self.done = 0
        self.first_came = self.first_done = math.nan
        self.batch: dict[str, Any] = {}
        self._images, self._waiting, self._seconds = 0, 0.0, 0.0
        self._results: dict[str, Any] = {}
        self._syncs: list[int] = []
        self._counting = ExitStack()

    def go_on(self) -> None:
        """An epoch begins: its first batch is asked for next."""
        self._running_since = self._ready_since = synchronized()
        if self._results:  # the timing is done
            self._counting.enter_context(counted_syncs(self._syncs))

    def pause(self) -> None:
        """An epoch's last iteration has ended."""
        self._counting.close()
        self._seconds += synchronized() - self._running_since

    def batch_came(self, batch: dict) -> None:
        """The loader has given a batch."""
        self._waiting += time.perf_counter() - self._ready_since
        if not self.batch:
            self.first_came = time.time()
            self.batch = dict(batch)  # what the step may take out of it stays in here

    def iteration_ended(self, batch: dict) -> None:
        """A batch is trained on and all hooks have run."""
        self.done += 1
        self._images += len(batch["inputs"])
        if self.done == 1:
            synchronized()
            self.first_done = time.time()
        if self.done == self.warmup:
            self._images, self._waiting, self._seconds = 0, 0.0, 0.0
            self.go_on()
        elif self.done == self.warmup + self.iterations:
            self.pause()
            self._results = {
                "images_per_second": self._images / self._seconds,
                "waiting_share": self._waiting / self._seconds,
                "warmup": self.warmup,
                "iterations": self.iterations,
                "images": self._images,
                "seconds": self._seconds,
                "waiting_seconds": self._waiting,
            }
            self.go_on()
        elif self.done == self.wanted:
            self.pause()
        self._ready_since = time.perf_counter()

    def results(self) -> dict:
        """What was measured, when all wanted iterations are done."""
        on_gpu = torch.cuda.is_available()
        return self._results | {
            "syncs_per_iteration": sum(self._syncs) / self.watched,
            "sync_measure": "warnings of torch.cuda's sync debug mode" if on_gpu else "aten::_local_scalar_dense",
            "device_peak_mb": torch.cuda.max_memory_allocated() / MB if on_gpu else None,
            "device_reserved_mb": torch.cuda.max_memory_reserved() / MB if on_gpu else None,
        }


class First(Hook):
    """Tells a watch what has happened before any other hook works on it."""

    priority = "HIGHEST"

    def __init__(self, watch: TrainWatch) -> None:
        self.watch = watch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self.watch.batch_came(data_batch)

    def after_train_epoch(self, runner: Runner) -> None:
        self.watch.pause()


class Last(Hook):
    """Tells a watch what has happened when all other hooks are done with it.

    After the last iteration it measures the rest on the spot: a loop may have a network of its own only while it runs
    (one on precomputed features).
    """

    priority = "LOWEST"

    def __init__(self, watch: TrainWatch) -> None:
        self.watch = watch

    def before_train(self, runner: Runner) -> None:
        runner.train_loop.val_begin = math.inf
        self.watch.go_on()

    def before_train_epoch(self, runner: Runner) -> None:
        self.watch.go_on()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        watch = self.watch
        watch.iteration_ended(data_batch)
        if watch.done == watch.wanted:
            got = watch.results()
            got |= measure_ceiling(runner.model, runner.optim_wrapper, watch.batch, watch.warmup, watch.iterations)
            got["of_ceiling"] = got["images_per_second"] / got["ceiling_images_per_second"]
            raise Enough(got | measure_validation(runner))


def measure_ceiling(
    model: nn.Module, optim_wrapper: OptimWrapper, batch: dict, warmup: int, iterations: int
) -> dict[str, Any]:
    """Time forward, backward and step on one batch on the device: what the Runner's rate can at best come near to.

    The learning rate is 0 for that: the same work, and no number of steps on one batch can spoil the weights.

    Args:
        model: A classifier as it is trained: on its device, in its memory format, what is frozen frozen.
        optim_wrapper: It brings the precision and the optimizer.
        batch: From the loader. It goes through the model's preprocessor once, outside of the timed span.
        warmup: Steps that are left out.
        iterations: Steps that are timed.
    """
    for group in optim_wrapper.param_groups:
        group["lr"] = 0.0
    with optim_wrapper.optim_context(model):
        data = model.data_preprocessor(batch, True)
    for step in range(warmup + iterations):
        if step == warmup:
            start = synchronized()
        with optim_wrapper.optim_context(model):
            losses = model(**data, mode="loss")
        loss, _ = model.parse_losses(losses)
        optim_wrapper.update_params(loss)
    seconds = synchronized() - start
    return {
        "ceiling_images_per_second": iterations * len(data["inputs"]) / seconds,
        "ceiling_seconds": seconds,
        "input_shape": list(data["inputs"].shape),
    }


class ValWatch(Hook):
    """Times a validation from its first batch to its metrics, and ends it before other hooks write checkpoints."""

    priority = "HIGHEST"

    def before_val_epoch(self, runner: Runner) -> None:
        self.images, self._start = 0, synchronized()

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Any = None
    ) -> None:
        self.images += len(data_batch["inputs"])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.seconds = synchronized() - self._start
        raise Enough


def measure_validation(runner: Runner) -> dict[str, Any]:
    """Validate twice, as between the epochs of a training: the first time loaders start and caches are filled."""
    watch, seconds = ValWatch(), []
    if runner.val_loop is None:
        return {"eval_images_per_second": None}
    runner.register_hook(watch)
    for _ in range(2):
        try:
            runner.val_loop.run()
        except Enough:
            seconds.append(watch.seconds)
    return {
        "eval_images_per_second": watch.images / seconds[-1],
        "eval_images": watch.images,
        "eval_seconds": seconds,
    }


def synchronized() -> float:
    """The time, as of ``time.perf_counter``, when the device has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


@contextmanager
def counted_syncs(counts: list[int]) -> Iterator[None]:
    """Count how often the host waits for a result of the device, and append that to ``counts``.

    With CUDA that is torch's own warning of synchronizing operations. A CPU never waits: there the reads of single
    numbers (``aten::_local_scalar_dense``, which ``item`` and ``bool`` come down to) stand for it.
    """
    if torch.cuda.is_available():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            yield
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            yield
        counts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense"))
