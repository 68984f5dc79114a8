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
    """Use channels-last memory format (NHWC): faster on CPUs and on GPUs with tensor cores, with the same results."""

    # Before EMAHook copies the model: averages of another memory format would be updated tensor by tensor on a GPU.
    priority = "ABOVE_NORMAL"

    def before_run(self, runner: Runner) -> None:
        """Convert the model in place; activations follow the weights."""
        runner.model.to(memory_format=torch.channels_last)


@HOOKS.register_module()
class LazyRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's hook, which reads the losses of several iterations at once: each look waits for the GPU.

    Args:
        interval: Iterations between two looks; that of the LoggerHook, which shows them, or a divisor.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._kept: list[dict] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the outputs, and add them to the message hub if it is due."""
        if outputs:
            self._kept.append({key: torch.as_tensor(value).detach() for key, value in outputs.items()})
        if self.every_n_inner_iters(batch_idx, self.interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._update(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the kept outputs to the message hub, which the checkpoint is about to get."""
        self._update(runner)

    def _update(self, runner: Runner) -> None:
        kept, self._kept = self._kept, []
        for key in kept[0] if kept else ():
            for value in torch.stack([outputs[key].float().mean() for outputs in kept]).tolist():
                runner.message_hub.update_scalar(f"train/{key}", value)


@HOOKS.register_module()
class ProgressiveResizeHook(Hook):
    """Progressive resizing: train on small images first, and on full-size images in the last epochs.

    For datasets with a cache, whose augmentation works at any size.

    Args:
        sizes: ``{first epoch from 1: edge in pixels}``; in earlier epochs the config's size.
    """

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = {int(epoch): size for epoch, size in sizes.items()}

    def before_train(self, runner: Runner) -> None:
        """Check the dataset.

        Raises:
            InputError: It has no cache, or its pipeline has no batched form.
        """
        dataset = runner.train_dataloader.dataset
        self._augmentation: Any = getattr(dataset, "augmentation", None)
        if self._augmentation is None:
            unbatched = ", ".join(getattr(dataset, "unbatched", ()))
            raise InputError(
                "ProgressiveResizeHook needs a dataset with a cache and a pipeline with a batched form"
                + (f"; this one has {unbatched}" if unbatched else ""),
                "remove those transforms" if unbatched else "train_dataloader = dict(dataset=dict(cache=True))",
            )
        self._full = self._augmentation.size

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the size for this epoch."""
        begun = [epoch for epoch in self.sizes if epoch <= runner.epoch + 1]
        size = self.sizes[max(begun)] if begun else self._full
        if size != self._augmentation.size:
            self._augmentation.size = size
            runner.train_dataloader._iterator = None  # persistent workers have a copy of the dataset


@HOOKS.register_module()
class KeepMemoryHook(Hook):
    """Reuse freed memory in a run on a CPU (see ``mmflowers.speed.memory``)."""

    def before_run(self, runner: Runner) -> None:
        """Set it for the whole process."""
        if get_device() == "cpu":
            keep_freed_memory()


@HOOKS.register_module()
class OutOfPlaceHook(Hook):
    """Train without in-place activations whose inputs the backward pass needs.

    Autograd clones the input of ReLU6, SiLU, hardswish … before it is overwritten, so in-place saves no memory and
    costs a pass over the activations. Evaluations need no gradients and stay in-place.
    """

    CLONED = (
        torch.nn.Hardtanh,  # ReLU6 is one
        torch.nn.SiLU,
        torch.nn.Hardswish,
        torch.nn.Hardsigmoid,
        torch.nn.Mish,
    )

    def before_train_epoch(self, runner: Runner) -> None:
        """Switch to out-of-place."""
        self._changed = [each for each in runner.model.modules() if isinstance(each, self.CLONED) and each.inplace]
        for module in self._changed:
            module.inplace = False

    def after_train_epoch(self, runner: Runner) -> None:
        """Switch back to in-place."""
        for module in self._changed:
            module.inplace = True


@HOOKS.register_module()
class FastDepthwiseHook(Hook):
    """Use depthwise convolutions with a faster backward pass (see ``mmflowers.speed.depthwise``).

    They are faster in bfloat16 on a CPU; in float32 or on another device the hook does nothing.
    """

    def before_train(self, runner: Runner) -> None:
        """Replace them in the model; parameters and their names stay."""
        pays = getattr(runner.optim_wrapper, "computes_bfloat16", False)
        if pays and next(runner.model.parameters()).device.type == "cpu":
            count = replace_depthwise(runner.model)
            if count:
                runner.logger.info(f"{count} depthwise convolutions use the faster backward pass")


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Train the backbone with CUDA graphs (see ``mmflowers.speed.graphs``).

    For one process on a GPU without gradient accumulation; otherwise it does nothing.
    """

    device = "cuda"
    make = staticmethod(torch.cuda.make_graphed_callables)

    def before_train(self, runner: Runner) -> None:
        """Replace the backbone's forward pass by graphs, where possible."""
        model, accumulates = runner.model, runner.optim_wrapper._accumulative_counts > 1
        if get_device() == self.device and not is_model_wrapper(model) and not accumulates:
            model.backbone.forward = GraphedForward(
                model.backbone,
                before_capture=runner.finish_saving,  # whose thread copies from the GPU
                warn=runner.logger.warning,
                make=self.make,
            )
