"""Hooks that make training faster with the same results."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmflowers.registry import HOOKS
from mmflowers.speed.depthwise import replace_depthwise
from mmflowers.speed.graphs import GraphedForward
from mmflowers.speed.memory import keep_freed_memory
from mmflowers.utils.errors import InputError


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Lay the model's convolutions out as NHWC: faster on CPUs and on GPUs with tensor cores, same numbers."""

    # Before EMAHook copies the model: averages of another layout would be updated tensor by tensor on a GPU.
    priority = "ABOVE_NORMAL"

    def before_run(self, runner: Runner) -> None:
        """Convert the model in place; activations follow the weights."""
        runner.model.to(memory_format=torch.channels_last)


@HOOKS.register_module()
class LazyRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's, which looks at the losses ``interval`` at a time: each look waits for the GPU.

    Args:
        interval: Of iterations; that of the LoggerHook, which shows them, or a divisor.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._kept: list[dict] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the outputs; hand them to the message hub when it is time."""
        if outputs:
            self._kept.append({key: torch.as_tensor(value).detach() for key, value in outputs.items()})
        if self.every_n_inner_iters(batch_idx, self.interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.settle(runner)

    def settle(self, runner: Runner) -> None:
        """Hand all that is kept to the message hub; the Runner asks for it before it writes a checkpoint."""
        kept, self._kept = self._kept, []
        for key in kept[0] if kept else ():
            for value in torch.stack([outputs[key].float().mean() for outputs in kept]).tolist():
                runner.message_hub.update_scalar(f"train/{key}", value)


@HOOKS.register_module()
class ProgressiveResizeHook(Hook):
    """Train on small images first: the later epochs, which decide, see the full size.

    For datasets with a cache, whose augmentation is computed at any size.

    Args:
        sizes: ``{first epoch from 1: edge in pixels}``; before the first of them the config's size.
    """

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = {int(epoch): size for epoch, size in sizes.items()}

    def before_train(self, runner: Runner) -> None:
        """See that the dataset can.

        Raises:
            InputError: It has no cache, or its pipeline has no form for whole batches.
        """
        dataset = runner.train_dataloader.dataset
        self._augmentation: Any = getattr(dataset, "augmentation", None)
        if self._augmentation is None:
            unbatched = ", ".join(getattr(dataset, "unbatched", ()))
            raise InputError(
                "ProgressiveResizeHook needs a dataset with a cache and a pipeline that is computed for whole batches"
                + (f"; this one has {unbatched}" if unbatched else ""),
                "leave those transforms out" if unbatched else "train_dataloader = dict(dataset=dict(cache=True))",
            )
        self._full = self._augmentation.size

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the size of the epoch that begins."""
        begun = [epoch for epoch in self.sizes if epoch <= runner.epoch + 1]
        size = self.sizes[max(begun)] if begun else self._full
        if size != self._augmentation.size:
            self._augmentation.size = size
            runner.train_dataloader._iterator = None  # persistent workers have the dataset as it was when they started


@HOOKS.register_module()
class KeepMemoryHook(Hook):
    """Let a run on a CPU keep the memory that it frees (see ``mmflowers.speed.memory``)."""

    def before_run(self, runner: Runner) -> None:
        """Set it, for the process."""
        if get_device() == "cpu":
            keep_freed_memory()


@HOOKS.register_module()
class OutOfPlaceHook(Hook):
    """Train with activations that write to memory of their own where writing in place copies.

    The backward pass of ReLU6, SiLU, hardswish … needs what came in, so autograd clones it before it is overwritten:
    one pass over the activations more than writing elsewhere, for no memory less. Nothing is cloned where there are no
    gradients, so evaluations keep to their place.
    """

    CLONED = (
        torch.nn.Hardtanh,  # ReLU6 is one
        torch.nn.SiLU,
        torch.nn.Hardswish,
        torch.nn.Hardsigmoid,
        torch.nn.Mish,
    )

    def before_train_epoch(self, runner: Runner) -> None:
        """Let them write elsewhere."""
        self._changed = [each for each in runner.model.modules() if isinstance(each, self.CLONED) and each.inplace]
        for module in self._changed:
            module.inplace = False

    def after_train_epoch(self, runner: Runner) -> None:
        """Let them write in place."""
        for module in self._changed:
            module.inplace = True


@HOOKS.register_module()
class FastDepthwiseHook(Hook):
    """Put depthwise convolutions with a quick backward pass in the model (see ``mmflowers.speed.depthwise``).

    It pays under bfloat16 on a CPU, so it does nothing in float32 or on another device.
    """

    def before_train(self, runner: Runner) -> None:
        """Replace them in place; parameters and names stay."""
        pays = getattr(runner.optim_wrapper, "computes_bfloat16", False)
        if pays and next(runner.model.parameters()).device.type == "cpu":
            count = replace_depthwise(runner.model)
            if count:
                runner.logger.info(f"{count} depthwise convolutions take the quick backward pass")


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Train the backbone by CUDA graphs (see ``mmflowers.speed.graphs``).

    For one process on a GPU that accumulates no gradients; elsewhere it does nothing.
    """

    device = "cuda"
    make = staticmethod(torch.cuda.make_graphed_callables)

    def before_train(self, runner: Runner) -> None:
        """Let graphs stand for the backbone's forward pass, where that can be."""
        model, accumulates = runner.model, runner.optim_wrapper._accumulative_counts > 1
        if get_device() == self.device and not is_model_wrapper(model) and not accumulates:
            model.backbone.forward = GraphedForward(
                model.backbone,
                before_capture=runner.finish_saving,  # whose thread copies from the GPU
                warn=runner.logger.warning,
                make=self.make,
            )
