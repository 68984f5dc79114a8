"""MMEngine's Runner with loading that is safe and says what it did, and checkpoints that are whole or not there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process, master_only
from mmengine.evaluator import Evaluator
from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.checkpoint import weights_to_cpu
from torch.utils.data import DataLoader

import mmflowers.weights.init_cfg  # noqa: F401 - what MMEngine reads for a config's layers is data only
from mmflowers.datasets.seeded import MORE_SHARED_MEMORY
from mmflowers.datasets.served import Coverage, coverage
from mmflowers.datasets.wrappers import all_innermost
from mmflowers.engine import configuration
from mmflowers.engine.loops import ExactTrainLoop
from mmflowers.engine.progress import ProgressHook, make_room, wants_bar
from mmflowers.engine.record import RecordHook
from mmflowers.engine.schedule import schedulers
from mmflowers.evaluation.metrics import CountPhotos
from mmflowers.models.preprocessing import FlowersDataPreprocessor
from mmflowers.registry import RUNNERS
from mmflowers.utils.errors import InputError, count
from mmflowers.utils.files import DISK_ERRORS, write_text
from mmflowers.weights.conversion import convert_state_dict
from mmflowers.weights.loading import load_checkpoint_file, meta_of, require_finite
from mmflowers.weights.saving import CheckpointWriter, write_checkpoint
from mmflowers.weights.sources import downloads_when_built, fetch_weights, start_in_model

LAST = "last.pth"


class _Prepared(Exception):
    """A checkpoint is complete, and MMEngine would write it now: in place, while the training waits."""

    def __init__(self, checkpoint: dict) -> None:
        self.checkpoint = checkpoint


class Validation(NamedTuple):
    """What a validation counted.

    Attributes:
        coverage: How much of val it is of.
        top1: Share of right predictions in percent, counted apart from the config's metrics; None of multi-label data.
    """

    coverage: Coverage
    top1: float | None


@RUNNERS.register_module()
class FlowersRunner(Runner):
    """The Runner that all commands of this project use.

    Beyond MMEngine's: checkpoints load as data only; weights in OpenMMLab's, torchvision's or timm's names are taken,
    and a backbone that isn't filled whole is an error; a checkpoint appears under its name when it is whole; resuming
    finds the work dir's ``last.pth`` wherever the work dir was moved; distributed training runs on CPUs too. Epochs run
    in the ``ExactTrainLoop``, and what the disk or a loader's worker does to them is said in a line.
    """

    _load_from: str | None  # MMEngine's
    _writer: CheckpointWriter | None = None
    validated: Validation | None = None  # the last validation, on the main process
    resumed_meta: Mapping = MappingProxyType({})  # ``meta`` of the checkpoint that is resumed
    loaded_meta: Mapping = MappingProxyType({})  # ``meta`` of the weights that were loaded

    def train(self) -> torch.nn.Module:
        """Train as MMEngine does.

        Raises:
            InputError: The disk is full or fails, a photo can't be loaded or is fatal, the loss isn't finite.
            OutOfMemory: A batch doesn't fit.
        """
        with explained_disk(self.work_dir), self._explained_loaders():
            try:
                with CheckpointWriter() as self._writer:
                    return super().train()
            finally:
                self._writer = None

    def test(self) -> dict:
        """Test as MMEngine does; here the head of the loaded checkpoint has to fit as well."""
        self._keep_head = True
        with explained_disk(self.work_dir), self._explained_loaders():
            return super().test()

    def build_model(self, model: torch.nn.Module | dict) -> torch.nn.Module:
        """Build the model as MMEngine does.

        Raises:
            InputError: timm or Hugging Face can't download what ``pretrained=True`` asks for.
        """
        try:
            return super().build_model(model)
        except OSError as error:  # of the network, or of the libraries' caches
            if not downloads_when_built(model):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            what = f"the weights of {start_in_model(model)} (pretrained=True) can't be downloaded: {reason}"
            hint = "--weights FILE names a local file, --weights none starts from scratch"
            raise InputError(what, hint) from error

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader whose samples are seeded one by one (``SeededDataset``); otherwise as MMEngine does."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        cfg = {
            **{key: value for key, value in dataloader.items() if key != "disable_subprocess_warning"},
            "dataset": dict(type="SeededDataset", dataset=dataloader["dataset"], seed=seed or 0),
            "sampler": dict(type="SeededSampler", sampler=dataloader["sampler"]),
        }
        cfg.setdefault("worker_init_fn", dict(type="mmflowers.leave_signals_to_the_trainer"))
        if not cfg.get("num_workers") and any(each.get("cache") for each in all_innermost(dataloader)):
            cfg["pin_memory"] = False  # its photos may be on the GPU already, which torch refuses to pin
        collate = cfg.get("collate_fn") or "pseudo_collate"
        collate = dict(collate) if isinstance(collate, dict) else {"type": collate}
        cfg["collate_fn"] = dict(type="mmflowers.collate_samples", collate=collate.pop("type"), **collate)
        loader = Runner.build_dataloader(cfg, seed, diff_rank_seed)
        if loader.num_workers and hasattr(loader.dataset, "open_cache"):
            loader.dataset.open_cache()
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the ``ExactTrainLoop`` where MMEngine would take its own for epochs."""
        if isinstance(loop, dict) and loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch") else "") == (
            "EpochBasedTrainLoop"
        ):
            loop = {**{key: value for key, value in loop.items() if key != "by_epoch"}, "type": "ExactTrainLoop"}
        built = super().build_train_loop(loop)
        self._check_augmentation(built.dataloader)
        return built

    def _check_augmentation(self, loader: DataLoader) -> None:
        """See that the model's data preprocessor augments the batches that ask for it; say which pipelines don't.

        Raises:
            InputError: It doesn't: the network would get whole photos, each scaled to a square.
        """
        model = self.model.module if is_model_wrapper(self.model) else self.model
        dataset: Any = loader.dataset
        if getattr(dataset, "augmentation", None) is not None and not isinstance(
            model.data_preprocessor, FlowersDataPreprocessor
        ):
            raise InputError(
                f"{type(model.data_preprocessor).__name__} doesn't augment the batches of a dataset with a cache",
                "set data_preprocessor.type to FlowersDataPreprocessor, or the dataset's cache to False",
            )
        if unbatched := getattr(dataset, "unbatched", ()):
            steps = ", ".join(type(step).__name__ for step in dataset.pipeline.transforms)
            where = f"in {count(loader.num_workers, 'loader worker')}" if loader.num_workers else "in the main process"
            self.logger.info(f"{steps} run photo by photo {where}: no batched form of {', '.join(unbatched)}")

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the ``StoppableValLoop`` where the config names none."""
        if isinstance(loop, dict) and "type" not in loop:
            loop = {"type": "StoppableValLoop", **loop}
        built = super().build_val_loop(loop)
        self._counter = CountPhotos()
        if isinstance(getattr(built, "evaluator", None), Evaluator):
            built.evaluator.metrics.append(self._counter)
        return built

    def load_or_resume(self) -> None:
        """Load ``load_from``, or resume from it or from the last checkpoint of the work dir."""
        last = Path(self.work_dir) / LAST
        if self._resume and self._load_from is None and last.is_file():
            self._load_from = str(last)  # MMEngine's pointer file names a place that the work dir may have left
        super().load_or_resume()

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build MMEngine's logger, talking on stderr: stdout is for results. On a terminal it leaves room for a bar.

        The line for each parameter without weight decay is in the log's file alone.
        """
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
                handler.addFilter(lambda record: not str(record.msg).startswith("paramwise_options"))
                if wants_bar(self.launcher):
                    make_room(handler)
        return logger

    def register_hooks(self, *args, **kwargs) -> None:
        """Register MMEngine's and the config's hooks, the record of the run, and on a terminal the bar."""
        super().register_hooks(*args, **kwargs)
        if not any(isinstance(hook, RecordHook) for hook in self._hooks):
            self.register_hook(RecordHook())
        if wants_bar(self.launcher):
            self.register_hook(ProgressHook())

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = False, revise_keys: Any = None
    ) -> dict[str, Any]:
        """Load a checkpoint or plain weights into the model.

        Args:
            filename: A path, a URL, or ``package://<import name>/<file>``.
            map_location: As of ``torch.load``.
            strict: Whether the head has to fit too; implied when resuming or testing.
            revise_keys: Not used: names are converted by what they are (see ``convert_state_dict``).

        Raises:
            InputError: The file can't be had, is refused, or doesn't fit the model.
        """
        path = fetch_weights(filename)
        checkpoint = load_checkpoint_file(path, map_location)
        if "state_dict" not in checkpoint:
            checkpoint = {"state_dict": checkpoint.get("model", checkpoint)}
        self.loaded_meta = meta_of(checkpoint)
        if self._resume:
            _check_resumable(checkpoint, path)
            self.resumed_meta = checkpoint["meta"]
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        keep_head = strict or self._resume or getattr(self, "_keep_head", False)
        conversion = convert_state_dict(checkpoint["state_dict"], model, keep_head=keep_head)
        require_finite(conversion.state_dict, path)
        checkpoint["state_dict"] = conversion.state_dict  # in the model's names, before hooks (EMA) take their copy
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        self._has_loaded = True

        count = sum(key.startswith("backbone.") for key in conversion.state_dict)
        line = f"weights: {path.name} ({conversion.origin} names), {count} tensors of the backbone"
        self.logger.info(f"{line}; {conversion.head}" if conversion.head else f"{line} and the head")
        for name, gradient in checkpoint.get("gradients", {}).items() if self._resume else ():
            self.model.get_parameter(name).grad = gradient.to(get_device())
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = _revive_message_hub(checkpoint["message_hub"])
        return checkpoint

    def resume(
        self, filename: str, resume_optimizer: bool = True, resume_param_scheduler: bool = True, **kwargs
    ) -> None:
        """Resume as MMEngine does, and within an epoch where the checkpoint was written within one.

        With another batch size or number of processes, place and schedules are converted to where they would stand.

        Raises:
            InputError: As ``load_checkpoint``; or the checkpoint is of within an epoch, between two of the new batches.
        """
        super().resume(filename, resume_optimizer, resume_param_scheduler, **kwargs)
        loop, meta = self.train_loop, self.resumed_meta
        if resume_param_scheduler and self._is_longer():
            self._wind_schedulers(loop._epoch, loop._iter)
        if not isinstance(loop, ExactTrainLoop):
            return
        loop.epoch_iter = meta.get("epoch_iter", 0)
        if meta.get("batches", self._batches()) == self._batches():
            return
        done, batch = loop.epoch_iter * meta["batches"][0] * meta["batches"][1], loop.batch_size * get_world_size()
        if loop.epoch_iter >= meta["batches"][2]:
            loop.epoch_iter = len(loop.dataloader)
        elif done % batch == 0:
            loop.epoch_iter = done // batch
        else:
            (size, processes, _), (own, own_processes, _) = meta["batches"], self._batches()
            raise InputError(
                f"{filename} was written within an epoch of batches of {size} in {processes} processes; here they are "
                f"batches of {own} in {own_processes}",
                "resume it as it was started, or with batches that divide those",
            )
        loop._iter = loop._epoch * len(loop.dataloader) + loop.epoch_iter
        if resume_param_scheduler:
            self._wind_schedulers(loop._epoch, loop._iter)

    def save_last(self) -> None:
        """Write ``last.pth``: all that a run needs to go on from where it stands, within an epoch too.

        Raises:
            InputError: The weights aren't finite; the last checkpoint stays.
        """
        meta = {"epoch": self.epoch, "iter": self.iter}
        if isinstance(self.train_loop, ExactTrainLoop):
            meta |= {"epoch_iter": self.train_loop.epoch_iter, "batches": self._batches()}
        self.save_checkpoint(self.work_dir, LAST, meta=meta)
        if is_main_process():
            # MMEngine's pointer file; relative, so that the work dir can be moved.
            write_text(Path(self.work_dir) / "last_checkpoint", LAST, sync=False)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, save_optimizer: bool = True, **kwargs) -> None:
        """Save as MMEngine does, but whole or not at all (``write_checkpoint``), and as plain data.

        During a training the file is written while it goes on: ``finish_saving`` waits for it. With
        ``save_optimizer=False`` the message hub stays out as well: what remains is the weights and ``meta``.

        Raises:
            InputError: The weights aren't finite.
            OSError: The disk is full or fails, now or at an earlier call. What was there under this name stays.
        """
        super().call_hook("settle")
        model = self.model.module if is_model_wrapper(self.model) else self.model
        weights = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if "running_" in n}}
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in weights.values()]).tolist()
        spoilt = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
        if spoilt:
            what = (
                f"the weights are no longer finite after iteration {self.iter} ({len(spoilt)} tensors: {spoilt[0]} …)"
            )
            raise InputError(what, "try a lower learning rate; the checkpoints are of before")
        self._plain_weights_only = not save_optimizer
        try:
            super().save_checkpoint(out_dir, filename, *args, save_optimizer=save_optimizer, **kwargs)
        except _Prepared as prepared:
            write = self._writer.submit if self._writer else write_checkpoint
            # What hooks have put in (EMA) is on the GPU still, where the copy of a checkpoint that waits has no place.
            entries = prepared.checkpoint.items()
            on_host = {key: weights_to_cpu(value) if key.endswith("state_dict") else value for key, value in entries}
            write(on_host, Path(out_dir, filename))

    def finish_saving(self) -> None:
        """Wait until the checkpoints that were saved are on the disk.

        Raises:
            OSError: The disk is full or fails.
        """
        if self._writer:
            self._writer.finish()

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call the hooks; check the validation before ``after_val_epoch``, take a checkpoint after it was prepared."""
        if fn_name == "after_val_epoch":
            if is_main_process():
                self._check_validation()
            self._check_monitors(kwargs.get("metrics") or {})
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":
            checkpoint = kwargs["checkpoint"]
            hub = checkpoint.pop("message_hub")
            if not self._plain_weights_only:
                checkpoint["message_hub"] = _flatten_message_hub(hub)
                # Amid an accumulation. Several processes have gradients of their own, and this is the first's.
                if not self.optim_wrapper.should_update() and get_world_size() == 1:
                    named = self.model.named_parameters()
                    checkpoint["gradients"] = {name: p.grad.cpu() for name, p in named if p.grad is not None}
            raise _Prepared(checkpoint)

    def _check_validation(self) -> None:
        """Compare the photos that the validation counted with val.

        Raises:
            InputError: A photo was counted twice, or with another label than the list gives.
        """
        self.validated = None
        try:
            found = coverage(self._counter.counted, Path(configuration.data_root(self.cfg)), "val")
        except InputError:  # another dataset than a folder of ours
            return
        found.require_sound("val")
        self.validated = Validation(found, self._counter.top1)

    def _check_monitors(self, metrics: Mapping) -> None:
        """See that the metrics that hooks and schedules go by are there: the checks can't know those of user's classes.

        Raises:
            InputError: One isn't. MMEngine would end in a KeyError, or never stop early.
        """
        if not metrics or not isinstance(self._train_loop, BaseLoop):
            return
        schedulers = self.param_schedulers or []
        if isinstance(schedulers, dict):  # of several optimizers
            schedulers = [scheduler for several in schedulers.values() for scheduler in several]
        for each in (*self.hooks, *schedulers):
            goes_by = isinstance(each, (EarlyStoppingHook, ReduceOnPlateauParamScheduler))
            if goes_by and each.monitor not in metrics:
                what = f"{type(each).__name__} monitors {each.monitor}, which no evaluator gives"
                raise InputError(what, f"monitor one of {', '.join(metrics)}")

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap for distributed training, with the first process's statistics of BatchNorm for all.

        They are what a checkpoint holds; with statistics of its own a process would go on otherwise than it was
        stopped. And MMEngine names a GPU to DDP even where there is none.
        """
        if self.distributed and model_wrapper_cfg is None and not is_model_wrapper(model):
            unused = self.cfg.get("find_unused_parameters", False)
            if get_device() == "cpu":
                return MMDistributedDataParallel(module=model, broadcast_buffers=True, find_unused_parameters=unused)
            model_wrapper_cfg = dict(
                type="MMDistributedDataParallel", broadcast_buffers=True, find_unused_parameters=unused
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def _batches(self) -> list[int]:
        """What the number of an iteration means: batch size, processes, batches an epoch."""
        return [self.train_loop.batch_size, get_world_size(), len(self.train_dataloader)]

    def _is_longer(self) -> bool:
        """Whether a scheduler without an end, which ends with the training, is resumed into another length of it."""
        pairs = zip(schedulers(self.cfg), self.param_schedulers or (), strict=False)
        return any(
            "end" not in item and scheduler.end != (self.max_epochs if scheduler.by_epoch else self.max_iters)
            for item, scheduler in pairs
        )

    def _wind_schedulers(self, epochs: int, iters: int) -> None:
        """Rebuild the schedulers and step them to a place, with the rates of the config as the start."""
        if self.cfg.get("param_scheduler") is None:
            return
        for group in self.optim_wrapper.param_groups:
            group["lr"] = group["initial_lr"]
        self.param_schedulers = self.build_param_scheduler(self.cfg.param_scheduler)
        for scheduler in self.param_schedulers:
            for _ in range(epochs if scheduler.by_epoch else iters):
                scheduler.step()

    @contextmanager
    def _explained_loaders(self) -> Iterator[None]:
        """Say in a line that a loader's worker died, and of which photo or for want of shared memory."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            loops = (self._train_loop, self._val_loop, self._test_loop)
            loaders = [getattr(loop, "dataloader", None) for loop in loops]
            datasets: list[Any] = [loader.dataset for loader in loaders if isinstance(loader, DataLoader)]
            photos = [photo for dataset in datasets for photo in dataset.died_reading(error)]
            for told in (error, error.__cause__):  # torch says by what signal in the one or in the other
                if "shared memory" in str(told):
                    what = f"a loader worker died: {str(told).splitlines()[0]}"
                    raise InputError(what, MORE_SHARED_MEMORY) from error
            raise InputError(
                f"a loader worker died{' while it read ' + ', '.join(photos) if photos else ''}: "
                f"{str(error).splitlines()[0]}",
                "take the photo out if it always is the same one; else memory was short: fewer num_workers",
            ) from error


@contextmanager
def explained_disk(work_dir: str) -> Iterator[None]:
    """Say in a line what a disk, not the code, has done to a run.

    Raises:
        InputError: For a disk that is full, over quota, read-only or broken.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise InputError(
            f"can't write {error.filename or work_dir}: {error.strerror}",
            f"the checkpoints in {work_dir} are whole; make room or mend the disk, then --resume",
        ) from error


def _check_resumable(checkpoint: dict, path: Path) -> None:
    missing = {"meta", "optimizer", "message_hub"} - checkpoint.keys()
    if missing:
        raise InputError(
            f"{path} can't be resumed: it has no {', '.join(sorted(missing))}",
            f"resume {LAST}; --weights FILE starts a new run from weights alone",
        )
    # Runner.resume would run this text as a config file. Only checkpoints of MMEngine's first versions have it, to
    # compare numbers of GPUs.
    checkpoint["meta"].pop("config", None)


# MMEngine pickles HistoryBuffer objects, methods included, into its checkpoints, which weights-only loading refuses.
# Ours hold the same numbers as tensors.


def _flatten_message_hub(state: dict) -> dict:
    scalars = {
        name: {"log": torch.as_tensor(buffer.data[0]), "count": torch.as_tensor(buffer.data[1])}
        for name, buffer in state["log_scalars"].items()
    }
    info = {key: _plain(value) for key, value in state["runtime_info"].items() if _is_plain(value)}
    return {**state, "log_scalars": scalars, "runtime_info": info, "resumed_keys": dict(state["resumed_keys"])}


def _revive_message_hub(state: dict) -> dict:
    scalars = {
        name: HistoryBuffer(buffer["log"].tolist(), buffer["count"].tolist()) if isinstance(buffer, dict) else buffer
        for name, buffer in state["log_scalars"].items()
    }
    return {**state, "log_scalars": scalars}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (str, bool, int, float, np.generic))


def _plain(value: Any) -> Any:
    """``value`` with NumPy's numbers, some of which pass for Python's, made Python's own."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
