"""Checks that run the network and the loss once on made-up input, which covers any network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmflowers.checks.findings import Finding, check, error
from mmflowers.checks.keys import build, get
from mmflowers.utils.errors import InputError, count, is_own

if TYPE_CHECKING:
    import torch

    from mmflowers.checks.run import Case

WORLD_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # of torchrun, Slurm and MPI
SHOWN = 200  # characters of a library's message
SIZES = "make backbone, neck and head fit each other and the image size, which --laptop and --probe reduce"


@check()
def network_takes_the_images(case: Case) -> Iterator[Finding]:
    """Find image sizes that the network can't process, parts that don't fit, and batches of one photo."""
    from mmpretrain.models import BaseClassifier

    if not isinstance(case.model, BaseClassifier):
        return
    tried = set()
    for side, image in case.examples.items():
        training = side == "train" and get(case.config, "train_cfg.type") != "LinearProbeLoop"
        if (training, image.shape) in tried:
            continue
        tried.add((training, image.shape))
        problem = _failure(case, image, 2, training)
        if problem is not None:
            height, width = image.shape[1:]
            yield error("model", f"fails on {side} images of {height} × {width} pixels: {_message(problem)}", SIZES)
        elif training and (batches := _batches_of_one(case)):
            problem = _failure(case, image, 1, training)
            if problem is not None:
                hint = "change batch_size so that no batch has one photo, or set train_dataloader.drop_last=True"
                what = f"{batches}, which the network can't be trained on: {_message(problem)}"
                yield error("train_dataloader.batch_size", what, hint)


def _batches_of_one(case: Case) -> str:
    """Return which training batches have a single photo; "" if none has."""
    loader = case.config.get("train_dataloader")
    size, served = loader.get("batch_size"), case.loaders.get("train")
    if size == 1:
        return "1 gives batches of one photo"
    if served is None or loader.get("drop_last") or type(size) is not int or size < 2:
        return ""
    processes = 1
    if case.config.get("launcher", "none") != "none":
        processes = int(next((os.environ[name] for name in WORLD_SIZES if name in os.environ), 1))
    if processes > 1 and case.config.get("sync_bn"):
        return ""  # computes statistics over all processes
    photos = -(-int(served.counts.sum()) // processes)
    is_endless = photos > len(served.samples) > 0 and served.counts.max() > 1
    return "" if photos % size != 1 or is_endless else f"{count(photos)} leave a last batch of one photo"


def _failure(case: Case, image: torch.Tensor, images: int, training: bool) -> Exception | None:
    """Return the exception that the network raises for a batch of this size, or None.

    The network on the meta device is tried first, which is fast. Not every network can run there, so an error counts
    only if it also occurs with real tensors, in the step of the run.
    """
    if _step(case, case.model, image, images, training, real=False) is None:
        return None
    try:
        return _step(case, case.real_model, image, images, training, real=True)
    except InputError as problem:
        return problem


def _step(case: Case, model: Any, image: torch.Tensor, images: int, training: bool, real: bool) -> Exception | None:
    import torch
    from mmpretrain.structures import DataSample

    from mmflowers.engine.memory import is_out_of_memory
    from mmflowers.frozen.parts import WHOLE, FrozenStem

    def train_the_rest(*_: Any) -> None:
        model.train()

    device = next(model.parameters()).device
    batch = {"inputs": [image] * images}
    if real:
        batch["data_samples"] = [DataSample().set_gt_label(label) for label in range(images)]
    try:
        model.to(device).train(training)  # also sets the device of the data preprocessor
        layer = get(case.config, "train_cfg.freeze_to")
        with contextlib.ExitStack() as hooks, torch.no_grad():
            if training and isinstance(layer, str):  # frozen layers run in evaluation mode
                model.eval()
                model.head.train()
                if layer != WHOLE:
                    last = FrozenStem(model, layer).last
                    hooks.callback(last.register_forward_hook(train_the_rest).remove)
            mode = ("loss" if training else "predict") if real else "tensor"
            model(**model.data_preprocessor(batch, training), mode=mode)
    except Exception as problem:  # networks raise any type for invalid input
        if is_own(problem):
            raise
        return None if is_out_of_memory(problem) else problem
    return None


@check()
def loss_takes_the_classes(case: Case) -> Iterator[Finding]:
    """Find a loss whose ``class_weight`` or ``num_classes`` has another number of classes than the head."""
    import torch
    from mmpretrain.models import ClsHead, MultiLabelClsHead

    head, loss = getattr(case.model, "head", None), get(case.config, "model.head.loss")
    classes = get(case.config, "model.head.num_classes")
    if case.testing or not isinstance(head, ClsHead) or not isinstance(loss, dict) or type(classes) is not int:
        return
    target = torch.arange(2)
    several = isinstance(head, MultiLabelClsHead)
    if several or getattr(case.model.data_preprocessor, "to_onehot", False):  # as after mixup
        target = torch.nn.functional.one_hot(target, classes).float()
    try:
        module = build(case.config, loss, "MODELS")
        module(torch.zeros(2, classes), target, avg_factor=2)
    except Exception as problem:  # as above
        if is_own(problem):
            raise
        what = f"{loss.get('type')} fails on {classes} classes: {_message(problem)}"
        yield error(
            "model.head.loss",
            what,
            f"set num_classes={classes} and a class_weight of {classes} numbers, or remove them",
        )


def _message(problem: Exception) -> str:
    text = " ".join(str(problem).split()) or "no message"
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
    return text if isinstance(problem, InputError) else f"{type(problem).__name__}: {text}"
