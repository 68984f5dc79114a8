"""The Runner of all commands: MMEngine's with safe loading, atomic checkpoints and one-line errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process, master_only
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch.utils.data import DataLoader

import mmflowers.weights.init_cfg  # noqa: F401 - from here on MMEngine's own loading of weights is safe too
from mmflowers.datasets.wrappers import all_innermost
from mmflowers.engine.checkpoints import (
    LAST,
    build_checkpoint,
    require_finite_weights,
    require_resumable,
    revive_message_hub,
)
from mmflowers.engine.failures import explained_disk, explained_workers
from mmflowers.engine.loops import ExactTrainLoop
from mmflowers.engine.progress import ProgressHook, show_on_terminal, wants_bar
from mmflowers.engine.record import RecordHook
from mmflowers.engine.schedule import schedulers
from mmflowers.engine.validation import Validation, ValidationHook
from mmflowers.models.classifier import unwrap_model
from mmflowers.models.preprocessing import FlowersDataPreprocessor
from mmflowers.registry import RUNNERS
from mmflowers.utils.errors import InputError, count
from mmflowers.utils.files import write_text
from mmflowers.weights.conversion import convert_state_dict
from mmflowers.weights.loading import load_checkpoint_file, meta_of, require_finite
from mmflowers.weights.saving import CheckpointWriter, write_checkpoint
from mmflowers.weights.sources import downloads_when_built, fetch_weights, start_in_model


@RUNNERS.register_module()
class FlowersRunner(Runner):
    """The Runner that all commands of this project use.

    Differences from MMEngine's: checkpoints are loaded as data only. Weights may have the key names of OpenMMLab,
    torchvision or timm, and must fill the whole backbone. Checkpoint writes are atomic. ``--resume`` finds the work
    dir's ``last.pth`` even if the work dir was moved. Distributed training works on CPUs too. Epochs run in the
    ``ExactTrainLoop``. Failures of disks and loader workers are one-line errors.

    Attributes:
        resumed_meta: ``meta`` of the checkpoint that is resumed.
        loaded_meta: ``meta`` of the weights that were loaded.
        validated: The last validation, on the main process (``ValidationHook``).
    """

    _load_from: str | None  # MMEngine's
    _writer: CheckpointWriter | None = None
    resumed_meta: Mapping = MappingProxyType({})
    loaded_meta: Mapping = MappingProxyType({})
    validated: Validation | None = None

    def train(self) -> torch.nn.Module:
        """Train as MMEngine does.

        Raises:
            InputError: The disk is full or fails, a photo can't be loaded or kills the worker, the loss isn't finite.
            OutOfMemory: A batch doesn't fit.
        """
        with explained_disk(self.work_dir), explained_workers(self):
            try:
                with CheckpointWriter() as self._writer:
                    return super().train()
            finally:
                self._writer = None

    def test(self) -> dict:
        """Test as MMEngine does; the head of the checkpoint must fit too."""
        self._keep_head = True
        with explained_disk(self.work_dir), explained_workers(self):
            return super().test()

    # Building

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
        """Build a loader as MMEngine does, whose samples are seeded one by one (``SeededDataset``)."""
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
        """Build the train loop, an ``ExactTrainLoop`` where MMEngine would use its ``EpochBasedTrainLoop``."""
        if isinstance(loop, dict) and loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch") else "") == (
            "EpochBasedTrainLoop"
        ):
            loop = {**{key: value for key, value in loop.items() if key != "by_epoch"}, "type": "ExactTrainLoop"}
        built = super().build_train_loop(loop)
        self._check_augmentation(built.dataloader)
        return built

    def _check_augmentation(self, loader: DataLoader) -> None:
        """Check that batches to augment are augmented by the data preprocessor; log transforms that can't be batched.

        Raises:
            InputError: The data preprocessor doesn't. The network would get whole photos, each scaled to a square.
        """
        model = unwrap_model(self.model)
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
        """Build the val loop, a ``StoppableValLoop`` where the config names none."""
        if isinstance(loop, dict) and "type" not in loop:
            loop = {"type": "StoppableValLoop", **loop}
        return super().build_val_loop(loop)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build MMEngine's logger. Its file has every line, stderr those that a user needs (``show_on_terminal``)."""
        logger = super().build_logger(*args, **kwargs)
        show_on_terminal(logger, bar=wants_bar(self.launcher))
        return logger

    def register_hooks(self, *args, **kwargs) -> None:
        """Register MMEngine's and the config's hooks, and those that every run has."""
        super().register_hooks(*args, **kwargs)
        self.register_hook(ValidationHook())
        if not any(isinstance(hook, RecordHook) for hook in self._hooks):
            self.register_hook(RecordHook())
        if wants_bar(self.launcher):
            self.register_hook(ProgressHook())

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap the model for distributed training, with the first process's BatchNorm statistics for all processes.

        A checkpoint holds the first process's statistics. If each process had its own, a resumed run would differ from
        an uninterrupted one. MMEngine's wrapper also needs a GPU, this one doesn't.
        """
        if self.distributed and model_wrapper_cfg is None and not is_model_wrapper(model):
            unused = self.cfg.get("find_unused_parameters", False)
            if get_device() == "cpu":
                return MMDistributedDataParallel(module=model, broadcast_buffers=True, find_unused_parameters=unused)
            model_wrapper_cfg = dict(
                type="MMDistributedDataParallel", broadcast_buffers=True, find_unused_parameters=unused
            )
        return super().wrap_model(model_wrapper_cfg, model)

    # Loading

    def load_or_resume(self) -> None:
        """Load ``load_from``, or resume from it or from the last checkpoint of the work dir."""
        last = Path(self.work_dir) / LAST
        if self._resume and self._load_from is None and last.is_file():
            self._load_from = str(last)  # MMEngine's pointer file has a path that is wrong after a move
        super().load_or_resume()

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = False, revise_keys: Any = None
    ) -> dict[str, Any]:
        """Load a checkpoint or plain weights into the model.

        Args:
            filename: A path, a URL, or ``package://<import name>/<file>``.
            map_location: See ``torch.load``.
            strict: Whether the head has to fit too; implied when resuming or testing.
            revise_keys: Not used: ``convert_state_dict`` recognises the key names.

        Raises:
            InputError: The file isn't available, is refused, or doesn't fit the model.
        """
        path = fetch_weights(filename)
        checkpoint = load_checkpoint_file(path, map_location)
        if "state_dict" not in checkpoint:
            checkpoint = {"state_dict": checkpoint.get("model", checkpoint)}
        self.loaded_meta = meta_of(checkpoint)
        if self._resume:
            require_resumable(checkpoint, path)
            self.resumed_meta = checkpoint["meta"]
        model = unwrap_model(self.model)
        model = model.module if isinstance(model, BaseTTAModel) else model
        keep_head = strict or self._resume or getattr(self, "_keep_head", False)
        conversion = convert_state_dict(checkpoint["state_dict"], model, keep_head=keep_head)
        require_finite(conversion.state_dict, path)
        checkpoint["state_dict"] = conversion.state_dict  # in the model's names, before hooks (EMA) take their copy
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        self._has_loaded = True

        tensors = sum(key.startswith("backbone.") for key in conversion.state_dict)
        line = f"weights: {path.name} ({conversion.origin} names), {tensors} tensors of the backbone"
        self.logger.info(f"{line}; {conversion.head}" if conversion.head else f"{line} and the head")
        for name, gradient in checkpoint.get("gradients", {}).items() if self._resume else ():
            self.model.get_parameter(name).grad = gradient.to(get_device())
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = revive_message_hub(checkpoint["message_hub"])
        return checkpoint

    def resume(
        self, filename: str, resume_optimizer: bool = True, resume_param_scheduler: bool = True, **kwargs
    ) -> None:
        """Resume as MMEngine does, also within an epoch if the checkpoint was written within one.

        With another batch size or number of processes, the position and the schedules are converted.

        Raises:
            InputError: See ``load_checkpoint``; or the checkpoint's position is within one of the new batches.
        """
        super().resume(filename, resume_optimizer, resume_param_scheduler, **kwargs)
        loop = self.train_loop
        moved = isinstance(loop, ExactTrainLoop) and self._set_position(loop, filename)
        if resume_param_scheduler and (moved or self._is_longer()):
            self._rebuild_schedulers(loop._epoch, loop._iter)

    def _set_position(self, loop: ExactTrainLoop, filename: str) -> bool:
        """Set the loop to the checkpoint's position within an epoch; return whether the batches are others now."""
        loop.epoch_iter = self.resumed_meta.get("epoch_iter", 0)
        now = self._batches()
        before = self.resumed_meta.get("batches", now)
        if before == now:
            return False
        done, batch = loop.epoch_iter * before[0] * before[1], now[0] * now[1]
        if loop.epoch_iter >= before[2]:
            loop.epoch_iter = now[2]
        elif done % batch == 0:
            loop.epoch_iter = done // batch
        else:
            raise InputError(
                f"{filename} was written within an epoch of batches of {before[0]} in {before[1]} processes; here they "
                f"are batches of {now[0]} in {now[1]}",
                "resume it as it was started, or with batches that divide those",
            )
        loop._iter = loop._epoch * now[2] + loop.epoch_iter
        return True

    def _batches(self) -> list[int]:
        """Return what the number of an iteration depends on: batch size, processes, batches of an epoch."""
        return [self.train_loop.batch_size, get_world_size(), len(self.train_dataloader)]

    def _is_longer(self) -> bool:
        """Whether the training now has another length, and a scheduler ends with the training."""
        pairs = zip(schedulers(self.cfg), self.param_schedulers or (), strict=False)
        return any(
            "end" not in item and scheduler.end != (self.max_epochs if scheduler.by_epoch else self.max_iters)
            for item, scheduler in pairs
        )

    def _rebuild_schedulers(self, epochs: int, iters: int) -> None:
        """Rebuild the schedulers from the config's learning rates and step them to a position."""
        if self.cfg.get("param_scheduler") is None:
            return
        for group in self.optim_wrapper.param_groups:
            group["lr"] = group["initial_lr"]
        self.param_schedulers = self.build_param_scheduler(self.cfg.param_scheduler)
        for scheduler in self.param_schedulers:
            for _ in range(epochs if scheduler.by_epoch else iters):
                scheduler.step()

    # Saving

    def save_last(self) -> None:
        """Save ``last.pth``, with all that a run needs to resume from its position, also within an epoch.

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
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a checkpoint atomically (``write_checkpoint``) and as plain data (``build_checkpoint``).

        During a training the file is written in the background; ``finish_saving`` waits for it. The arguments are
        MMEngine's; with ``save_optimizer=False`` the message hub is left out too. A local file needs no backend.

        Raises:
            InputError: The weights aren't finite.
            OSError: The disk is full or fails, now or at an earlier call. An existing file of this name stays.
        """
        require_finite_weights(unwrap_model(self.model), self.iter)
        # As MMEngine counts: its CheckpointHook saves before the loop counts the epoch or iteration that has ended.
        ended = {"epoch": self.epoch + by_epoch, "iter": self.iter + (not by_epoch)}
        checkpoint = build_checkpoint(
            self, ended | (meta or {}), optimizer=save_optimizer, schedulers=save_param_scheduler
        )
        write = self._writer.submit if self._writer else write_checkpoint
        write(checkpoint, Path(out_dir, filename))

    def finish_saving(self) -> None:
        """Wait until all saved checkpoints are on the disk.

        Raises:
            OSError: The disk is full or fails.
        """
        if self._writer:
            self._writer.finish()
