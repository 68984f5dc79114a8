"""Apply the modes of the command line to a config: laptop, bfloat16, fast, frozen layers, linear probe."""

from __future__ import annotations

import inspect

from mmengine.config import Config

from mmflowers.engine.configuration import LOADERS, batch_augments, datasets, requires_form, switches, takes
from mmflowers.utils.errors import InputError

LOOK = 50  # iterations between two looks at the loss; each look waits for the GPU
# Of the recipe's resolution. On the 2,276 training photos of the report, 5-fold cross-validation gave 94.3 % ± 0.4 for
# 256 px, 94.4 for 192 px, 93.7 for 144 px and 92.6 for 128 px (EfficientNet-Lite0).
PROBE_SCALE = 9 / 16
FAST_HOOKS = ("ChannelsLastHook", "FastDepthwiseHook", "OutOfPlaceHook", "KeepMemoryHook", "CUDAGraphHook")


@requires_form
def fit_to_laptop(config: Config, epochs: int = 3, scale: float = 5 / 7) -> None:
    """Shrink a recipe: at most ``epochs`` epochs (2 or more), schedules in proportion, images 5/7 as wide."""
    full = _max_epochs(config, "--laptop")
    ratio = min(1.0, epochs / full)
    config.train_cfg.max_epochs = max(1, round(full * ratio))
    schedulers = config.get("param_scheduler") or []
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        for key in ("begin", "end", "T_max", "step_size", "total_iters"):
            if isinstance(scheduler.get(key), int) and scheduler[key] > 0:
                scheduler[key] = max(1, round(scheduler[key] * ratio))
        if isinstance(scheduler.get("T_max"), int) and isinstance(scheduler.get("end"), int):  # rounded apart
            scheduler["T_max"] = min(scheduler["T_max"], scheduler["end"] - (scheduler.get("begin") or 0))
        if "milestones" in scheduler:
            scheduler["milestones"] = [
                max(1, round(at * ratio)) if isinstance(at, int) else at for at in scheduler["milestones"] or ()
            ]
    _scale_images(config, scale)


def _max_epochs(config: Config, option: str) -> int:
    """Return the epochs of a training, which ``option`` needs."""
    epochs = config.train_cfg.get("max_epochs")
    if type(epochs) is not int or epochs < 1:
        what = f"{option} needs train_cfg.max_epochs, an integer from 1; the config has {epochs!r}"
        raise InputError(what, "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=8)")
    return epochs


def _scale_images(config: Config, scale: float) -> None:
    """Scale all sizes of images in the pipelines."""
    # By identity: datasets may share a pipeline.
    transforms = {id(step): step for dataset in datasets(config) for step in dataset.get("pipeline") or ()}
    for transform in transforms.values():
        for key in ("scale", "crop_size", "size"):  # torchvision's name is size
            edge = transform.get(key)
            if isinstance(edge, int):
                transform[key] = round(edge * scale)
            elif isinstance(edge, (list, tuple)) and all(isinstance(e, int) and e > 8 for e in edge):  # not factors
                transform[key] = type(edge)(round(e * scale) for e in edge)
    backbone = config.model.get("backbone")
    if takes(backbone, "pad_small_map"):  # Swin refuses feature maps smaller than its windows without it
        backbone["pad_small_map"] = True


@requires_form
def set_seed(config: Config, seed: int) -> None:
    """Set the random seed."""
    config.randomness = {**(config.get("randomness") or {}), "seed": seed}


@requires_form
def compute_in_bfloat16(config: Config) -> None:
    """Use the ``BFloat16OptimWrapper``, without options that only the ``AmpOptimWrapper`` has."""
    config.optim_wrapper.type = "BFloat16OptimWrapper"
    for option in ("dtype", "loss_scale", "use_fsdp"):
        config.optim_wrapper.pop(option, None)


@requires_form
def make_fast(config: Config) -> None:
    """Make a recipe faster with the pieces that ``configs/*_fast.py`` name one by one; the recipe stays the same.

    Photos are decoded once and augmented in whole batches on the device, in the main process. A pipeline with
    transforms that have no batched form keeps its loader workers. The other changes avoid waiting for the device, and
    use bfloat16 where the hardware supports it.
    """
    for dataset in datasets(config):
        if _is_ours(dataset):
            dataset["cache"] = True
    for name in LOADERS:
        if config.get(name) and _gives_batches(config, name):
            config[name].num_workers = 0
    if not config.model.get("data_preprocessor"):
        config.model.pop("data_preprocessor", None)  # an empty one would hide the config's
        config.data_preprocessor = config.get("data_preprocessor") or {}
    for preprocessor in (config.get("data_preprocessor"), config.model.get("data_preprocessor")):
        if preprocessor is not None and preprocessor.get("type", "ClsDataPreprocessor") == "ClsDataPreprocessor":
            preprocessor["type"] = "FlowersDataPreprocessor"
    loss = config.model.head.get("loss") or {}
    if loss.get("type") == "LabelSmoothLoss":
        loss["type"] = "FlowersLabelSmoothLoss"
    compute_in_bfloat16(config)
    config.optim_wrapper.where_fast = True
    if _can_be_fused(config.optim_wrapper.optimizer):
        config.optim_wrapper.optimizer.setdefault("fused", True)
    by_epoch = "EpochBasedTrainLoop" if config.train_cfg.get("by_epoch") else ""
    if config.train_cfg.get("type", by_epoch) in ("EpochBasedTrainLoop", "ExactTrainLoop", "FrozenTrainLoop"):
        config.train_cfg.loss_interval = LOOK
    if config.get("val_cfg") is not None:
        config.val_cfg.type = "FastValLoop"
    for name in ("default_hooks", "env_cfg"):  # MMEngine has defaults for what they leave out
        if config.get(name) is None:
            config[name] = {}
    config.default_hooks.runtime_info = dict(type="LazyRuntimeInfoHook", interval=LOOK)
    if config.default_hooks.setdefault("logger", dict(type="LoggerHook")) is not None:
        config.default_hooks.logger.interval = LOOK
    config.env_cfg.cudnn_benchmark = True
    kept = config.get("custom_hooks") or []
    config.custom_hooks = [*kept, *(dict(type=name) for name in FAST_HOOKS if dict(type=name) not in kept)]


def _is_ours(dataset: dict) -> bool:
    return str(dataset.get("type")).rpartition(".")[2] == "FlowersDataset"


def _gives_batches(config: Config, loader: str) -> bool:
    """Whether a loader's dataset gives whole batches throughout the training."""
    from mmflowers.transforms.batched import unbatched  # imports torch

    dataset = config[loader].get("dataset") or {}
    if not _is_ours(dataset) or unbatched(dataset.get("pipeline") or []):
        return False
    return loader != "train_dataloader" or not switches(config, "train_pipeline")


def _can_be_fused(optimizer: dict) -> bool:
    """Whether the optimizer is one of PyTorch's with a fused implementation."""
    import torch

    found = getattr(torch.optim, str(optimizer.get("type")), None)
    return found is not None and "fused" in inspect.signature(found).parameters


@requires_form
def freeze(config: Config, freeze_to: str, views: int) -> None:
    """Train the layers after ``freeze_to`` on precomputed features (``FrozenTrainLoop``).

    Raises:
        InputError: The config changes its pipeline during the training, when the features are computed already.
    """
    _refuse_switch(config, "--freeze-to")
    _max_epochs(config, "--freeze-to")
    config.train_cfg.pop("by_epoch", None)
    config.train_cfg |= dict(type="FrozenTrainLoop", freeze_to=freeze_to, views=views)


@requires_form
def refuse_mixed_images(config: Config) -> None:
    """Refuse Mixup and CutMix on precomputed features: mixing the features of photos is another method.

    A linear probe uses no augmentation at all, and logs that.

    Raises:
        InputError: The config has such augmentations, and trains on precomputed features.
    """
    found = list(batch_augments(config)) if config.train_cfg.get("type") == "FrozenTrainLoop" else []
    if found:
        kinds = ", ".join(str(augment.get("type")) for _, augment in found)
        options = " ".join(f"{key}=None" for key in dict.fromkeys(key for key, _ in found))
        raise InputError(
            f"{kinds} can't be applied to frozen features, which are computed once for each photo",
            f"--cfg-options {options} trains without them; without --freeze-to {kinds} can be used",
        )


@requires_form
def probe(config: Config) -> None:
    """Fit the head alone (``LinearProbeLoop``), on images 9/16 as wide, which takes a third of the arithmetic.

    Raises:
        InputError: See ``freeze``.
    """
    _refuse_switch(config, "--probe")
    _scale_images(config, PROBE_SCALE)
    config.train_cfg = dict(type="LinearProbeLoop", max_epochs=1)
    config.param_scheduler = []  # no step is taken


def _refuse_switch(config: Config, flag: str) -> None:
    """Refuse a ``SwitchRecipeHook`` that changes the training pipeline."""
    if switches(config, "train_pipeline"):
        what = f"{flag} computes all features before the training, and SwitchRecipeHook changes the pipeline in it"
        raise InputError(what, f"leave out {flag}, or train_pipeline in the hook's schedule")
