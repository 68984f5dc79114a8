"""The content of checkpoints: what a run saves, and what a resumed run gets back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.utils import apply_to, get_git_hash

from mmflowers.models.classifier import unwrap_model
from mmflowers.utils.errors import InputError

LAST, BEST = "last.pth", "best.pth"


def build_checkpoint(runner: Runner, meta: dict, *, optimizer: bool, schedulers: bool) -> dict[str, Any]:
    """Return what MMEngine's ``Runner.save_checkpoint`` would write, as plain data on the CPU.

    MMEngine's method writes the file as well, in place and without a way to leave that out.

    Args:
        runner: A runner in training. Its hooks' ``before_save_checkpoint`` are called, before the message hub is read.
        meta: With ``epoch`` and ``iter``.
        optimizer: Whether the state that a resumed run needs is included: the optimizer's, the message hub's and,
            within an accumulation, the gradients.
        schedulers: Whether the states of the schedulers are included.
    """
    meta |= {
        "cfg": runner.cfg.pretty_text,
        "seed": runner.seed,
        "experiment_name": runner.experiment_name,
        "time": time.strftime("%Y%m%d_%H%M%S"),
        "mmengine_version": mmengine.__version__ + get_git_hash(),
    }
    if hasattr(runner.train_dataloader.dataset, "metainfo"):
        meta["dataset_meta"] = runner.train_dataloader.dataset.metainfo
    checkpoint: dict[str, Any] = {"meta": meta, "state_dict": weights_to_cpu(unwrap_model(runner.model).state_dict())}
    if optimizer:
        checkpoint["optimizer"] = _on_cpu(runner.optim_wrapper.state_dict())
    if schedulers and runner.param_schedulers is not None:
        several = runner.param_schedulers  # a dict of lists where there are several optimizers
        checkpoint["param_schedulers"] = (
            {name: [each.state_dict() for each in one] for name, one in several.items()}
            if isinstance(several, dict)
            else [each.state_dict() for each in several]
        )
    runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    for key in [key for key in checkpoint if key.endswith("state_dict")]:  # EMAHook adds its weights from the GPU
        checkpoint[key] = weights_to_cpu(checkpoint[key])
    if optimizer:
        checkpoint["message_hub"] = _flatten_message_hub(_on_cpu(runner.message_hub.state_dict()))
        # Several processes have gradients of their own, and this is the first process.
        if not runner.optim_wrapper.should_update() and get_world_size() == 1:
            named = runner.model.named_parameters()
            checkpoint["gradients"] = {name: p.grad.cpu() for name, p in named if p.grad is not None}
    return checkpoint


def require_finite_weights(model: torch.nn.Module, iteration: int) -> None:
    """Refuse to save parameters or BatchNorm statistics that hold NaN or infinity.

    Raises:
        InputError: With the iterations done so far and the first of those tensors.
    """
    weights = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if "running_" in n}}
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in weights.values()]).tolist()
    broken = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
    if broken:
        what = f"the weights are no longer finite after iteration {iteration} ({len(broken)} tensors: {broken[0]} …)"
        raise InputError(what, "try a lower learning rate; the saved checkpoints are from before that")


def require_resumable(checkpoint: dict, path: Path) -> None:
    """Refuse to resume from a checkpoint of weights alone.

    Raises:
        InputError: Naming what is missing.
    """
    missing = {"meta", "optimizer", "message_hub"} - checkpoint.keys()
    if missing:
        raise InputError(
            f"{path} can't be resumed: it has no {', '.join(sorted(missing))}",
            f"resume {LAST}; --weights FILE starts a new run from weights alone",
        )
    # Runner.resume would run this text as a config file. Only checkpoints of MMEngine's first versions have it, to
    # compare numbers of GPUs.
    checkpoint["meta"].pop("config", None)


def revive_message_hub(state: dict) -> dict:
    """Return a checkpoint's message hub in the form that MMEngine loads."""
    scalars = {
        name: HistoryBuffer(buffer["log"].tolist(), buffer["count"].tolist()) if isinstance(buffer, dict) else buffer
        for name, buffer in state["log_scalars"].items()
    }
    # MMEngine warns of each key that it can't find, and only plain values are kept.
    keys = {
        key: value for key, value in state["resumed_keys"].items() if key in scalars or key in state["runtime_info"]
    }
    return {**state, "log_scalars": scalars, "resumed_keys": keys}


def _flatten_message_hub(state: dict) -> dict:
    """Return a message hub with tensors in place of MMEngine's ``HistoryBuffer`` objects.

    Their pickles name methods, which weights-only loading refuses.
    """
    scalars = {
        name: {"log": torch.as_tensor(buffer.data[0]), "count": torch.as_tensor(buffer.data[1])}
        for name, buffer in state["log_scalars"].items()
    }
    info = {key: _plain(value) for key, value in state["runtime_info"].items() if _is_plain(value)}
    return {**state, "log_scalars": scalars, "runtime_info": info, "resumed_keys": dict(state["resumed_keys"])}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (str, bool, int, float, np.generic))


def _plain(value: Any) -> Any:
    """Return ``value`` with NumPy's numbers converted to Python's; some of them are instances of Python's types."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _on_cpu(state: Any) -> Any:
    return apply_to(state, lambda value: hasattr(value, "cpu"), lambda value: value.cpu())
