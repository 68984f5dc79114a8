"""Checks of the requirements on this machine: shared memory for loader workers, precision of the device."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmflowers.checks.findings import Finding, check, error, warning
from mmflowers.checks.keys import EXAMPLES, get, scope
from mmflowers.utils.errors import is_own

if TYPE_CHECKING:
    from mmflowers.checks.run import Case

SHARED_MEMORY = Path("/dev/shm")  # on Linux, for the batches of loader workers
PREFETCHED = 2  # batches per worker, torch's default


@check()
def shared_memory_for_loader_workers(case: Case) -> Iterator[Finding]:
    """Find prefetched batches that exceed the free space of /dev/shm, which is 64 MB in Docker by default."""
    from mmflowers.datasets.seeded import MORE_SHARED_MEMORY

    if not SHARED_MEMORY.is_dir():
        return
    needed = {}
    for side, image in case.examples.items():
        loader = f"{side}_dataloader"
        batch, workers = get(case.config, f"{loader}.batch_size"), get(case.config, f"{loader}.num_workers")
        prefetched = get(case.config, f"{loader}.prefetch_factor")
        prefetched = PREFETCHED if prefetched is None else prefetched
        if all(type(number) is int for number in (batch, workers, prefetched)):
            images = min(batch * workers * prefetched, len(case.lists.get(side, ())) if workers else 0)
            needed[f"{loader}.num_workers"] = images * image.nbytes
    where = max(needed, key=needed.__getitem__, default="")
    free = shutil.disk_usage(SHARED_MEMORY).free
    if where and needed[where] > free:
        what = f"prefetched batches need up to {needed[where] / 1e6:,.0f} MB of shared memory"
        what += f", but {SHARED_MEMORY} has {free / 1e6:,.0f} MB free"
        yield warning(where, what, MORE_SHARED_MEMORY)


@check()
def optimizer_runs_on_this_device(case: Case) -> Iterator[Finding]:
    """Find an AmpOptimWrapper without a GPU, an unsupported precision, and invalid options of an optimizer."""
    import torch
    from mmengine.device import get_device
    from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
    from mmengine.registry import DefaultScope

    from mmflowers.registry import OPTIM_WRAPPERS

    config = case.config.get("optim_wrapper")
    if case.testing or not isinstance(config, dict) or not isinstance(config.get("optimizer"), dict):
        return
    config = {key: value for key, value in config.items() if key not in ("constructor", "paramwise_cfg")}
    layer = torch.nn.Linear(1, 1).to(get_device())
    try:
        with DefaultScope.overwrite_default_scope(scope(case.config)):
            kind = OPTIM_WRAPPERS.get(config.get("type", "OptimWrapper"))
            wrapper = build_optim_wrapper(layer, copy.deepcopy(config))
        with wrapper.optim_context(layer):
            layer(torch.zeros(1, 1, device=get_device()))
    except Exception as problem:  # constructors raise any type for invalid arguments
        if is_own(problem):
            raise
        mixed = isinstance(kind, type) and issubclass(kind, AmpOptimWrapper)
        what = f"fails on this machine's {get_device()}: {type(problem).__name__}: {' '.join(str(problem).split())}"
        hint = "use --amp, which trains in bfloat16 on GPUs and CPUs" if mixed else EXAMPLES
        yield error("optim_wrapper", what, hint)
