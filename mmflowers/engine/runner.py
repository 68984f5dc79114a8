"""MMEngine's Runner with loading that is safe and says what it did, and checkpoints that are whole or not there."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import RUNNERS

from mmflowers.engine.loading import load_checkpoint_file
from mmflowers.engine.weights import convert_state_dict, fetch_weights
from mmflowers.errors import InputError

LAST = "last.pth"


@RUNNERS.register_module()
class FlowersRunner(Runner):
    """The Runner that all commands of this project use.

    Beyond MMEngine's: checkpoints load as data only; weights in OpenMMLab's, torchvision's or timm's names are taken,
    and a backbone that isn't filled whole is an error; a checkpoint appears under its name when it is whole; resuming
    finds the work dir's ``last.pth`` wherever the work dir was moved; distributed training runs on CPUs too.
    """

    def test(self) -> dict:
        """Test as MMEngine does; here the head of the loaded checkpoint has to fit as well."""
        self._keep_head = True
        return super().test()

    def load_or_resume(self) -> None:
        """Load ``load_from``, or resume from it or from the last checkpoint of the work dir."""
        last = Path(self.work_dir) / LAST
        if self._resume and self._load_from is None and last.is_file():
            self._load_from = str(last)  # MMEngine's pointer file names a place that the work dir may have left
        super().load_or_resume()

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build MMEngine's logger, talking on stderr: stdout is for results."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
        return logger

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
        if self._resume:
            _check_resumable(checkpoint, path)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        keep_head = strict or self._resume or getattr(self, "_keep_head", False)
        conversion = convert_state_dict(checkpoint["state_dict"], model, keep_head=keep_head)
        checkpoint["state_dict"] = conversion.state_dict  # in the model's names, before hooks (EMA) take their copy
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        self._has_loaded = True

        count = sum(key.startswith("backbone.") for key in conversion.state_dict)
        line = f"weights: {path.name} ({conversion.origin} names), {count} tensors of the backbone"
        self.logger.info(f"{line}; {conversion.head}" if conversion.head else f"{line} and the head")
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = _revive_message_hub(checkpoint["message_hub"])
        return checkpoint

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, save_optimizer: bool = True, **kwargs) -> None:
        """Save as MMEngine does, but whole or not at all, and as plain data.

        Written beside its final name, flushed to the disk, then renamed. With ``save_optimizer=False`` the message hub
        stays out as well: what remains is the weights and ``meta``.
        """
        self._plain_weights_only = not save_optimizer
        partial = f".{filename}.partial"
        try:
            super().save_checkpoint(out_dir, partial, *args, save_optimizer=save_optimizer, **kwargs)
            with (Path(out_dir) / partial).open("rb+") as file:
                os.fsync(file.fileno())
            (Path(out_dir) / partial).replace(Path(out_dir) / filename)
        finally:
            (Path(out_dir) / partial).unlink(missing_ok=True)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call the hooks, and after those that prepare a checkpoint turn it into plain data."""
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":
            checkpoint = kwargs["checkpoint"]
            hub = checkpoint.pop("message_hub")
            if not self._plain_weights_only:
                checkpoint["message_hub"] = _flatten_message_hub(hub)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap for distributed training; MMEngine names a GPU to DDP even where there is none."""
        if self.distributed and model_wrapper_cfg is None and get_device() == "cpu" and not is_model_wrapper(model):
            return MMDistributedDataParallel(
                module=model,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            )
        return super().wrap_model(model_wrapper_cfg, model)


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
