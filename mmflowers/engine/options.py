"""Apply the modes of the command line to a config: laptop, bfloat16, fast, frozen layers, linear probe."""

from __future__ import annotations

import inspect

from mmengine.config import Config

from mmflowers.engine.configuration import LOADERS, _batch_augments, _of_a_known_form, datasets, switches
from mmflowers.utils.errors import InputError

LOOK = 50  # iterations between two looks at the loss, each of which waits for the GPU
# Of the recipe's resolution. On the 2,276 training photos of the report, 5-fold cross-validation gave 94.3 % ± 0.4 for
# 256 px, 94.4 for 192 px, 93.7 for 144 px and 92.6 for 128 px (EfficientNet-Lite0).
PROBE_SCALE = 9 / 16
FAST_HOOKS = ("ChannelsLastHook", "FastDepthwiseHook", "OutOfPlaceHook", "KeepMemoryHook", "CUDAGraphHook")


@_of_a_known_form
def fit_to_laptop(config: Config, epochs: int = 3, scale: float = 5 / 7) -> None:
    """Shrink a recipe: at most ``epochs`` epochs (2 or more), schedules in proportion, images 5/7 as wide.

    Every number of the recipe that counts epochs is scaled alike, so that a warm-up stays a warm-up and a step a step.
    """
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
    """The epochs of a training, which ``option`` asks for."""
    epochs = config.train_cfg.get("max_epochs")
    if type(epochs) is not int or epochs < 1:
        what = f"{option} needs train_cfg.max_epochs, an integer from 1; the config has {epochs!r}"
        raise InputError(what, "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=8)")
    return epochs


def _scale_images(config: Config, scale: float) -> None:
    # By identity: datasets may share a pipeline.
    transforms = {id(step): step for dataset in datasets(config) for step in dataset.get("pipeline") or ()}
    for transform in transforms.values():
        for key in ("scale", "crop_size", "size"):  # size: torchvision's word
            edge = transform.get(key)
            if isinstance(edge, int):
                transform[key] = round(edge * scale)
            elif isinstance(edge, (list, tuple)) and all(isinstance(e, int) and e > 8 for e in edge):  # no factors
                transform[key] = type(edge)(round(e * scale) for e in edge)


@_of_a_known_form
def compute_in_bfloat16(config: Config) -> None:
    """Take the ``BFloat16OptimWrapper``, without the options of the ``AmpOptimWrapper`` that the config may have."""
    config.optim_wrapper.type = "BFloat16OptimWrapper"
    for option in ("dtype", "loss_scale", "use_fsdp"):
        config.optim_wrapper.pop(option, None)


@_of_a_known_form
def make_fast(config: Config) -> None:
    """Give any recipe the pieces that ``configs/*_fast.py`` name one by one; what is learned stays as it is.

    Photos are decoded once and augmented by whole batches on the device, in the main process: no loader's workers take
    the processors from the training. A pipeline with transforms that have no form for whole batches stays with its
    workers. The rest saves waiting, and takes bfloat16 where the hardware has it.
    """
    for dataset in datasets(config):
        if _is_ours(dataset):
            dataset["cache"] = True
    for name in LOADERS:
        if config.get(name) and _gives_batches(config, name):
            config[name].num_workers = 0
    if not (config.get("data_preprocessor") or config.model.get("data_preprocessor")):
        config.data_preprocessor = dict(type="FlowersDataPreprocessor")
    for preprocessor in (config.get("data_preprocessor"), config.model.get("data_preprocessor")):
        if preprocessor and preprocessor.get("type", "ClsDataPreprocessor") == "ClsDataPreprocessor":
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
    for name in ("default_hooks", "env_cfg"):  # MMEngine has defaults for what a config leaves out of them
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
    """Whether a loader's dataset gives whole batches all through the training."""
    from mmflowers.transforms.batched import unbatched  # brings torch

    dataset = config[loader].get("dataset") or {}
    if not _is_ours(dataset) or unbatched(dataset.get("pipeline") or []):
        return False
    return loader != "train_dataloader" or not switches(config, "train_pipeline")


def _can_be_fused(optimizer: dict) -> bool:
    """Whether it is one of PyTorch's that has a fused form; those of other packages have none."""
    import torch

    found = getattr(torch.optim, str(optimizer.get("type")), None)
    return found is not None and "fused" in inspect.signature(found).parameters


@_of_a_known_form
def freeze(config: Config, freeze_to: str, views: int) -> None:
    """Train what comes after a layer on feature maps that are computed once (``FrozenTrainLoop``).

    Raises:
        InputError: The config exchanges its pipeline under way, when the photos have been looked at.
    """
    _refuse_switch(config, "--freeze-to")
    _max_epochs(config, "--freeze-to")
    config.train_cfg.pop("by_epoch", None)
    config.train_cfg |= dict(type="FrozenTrainLoop", freeze_to=freeze_to, views=views)


@_of_a_known_form
def refuse_mixed_images(config: Config) -> None:
    """Refuse Mixup and CutMix where a trunk is frozen: its features are of single photos, and mixing those is another
    method. A probe sees no augmentation at all, and says so.

    Raises:
        InputError: The config has such augmentations, and trains on frozen features.
    """
    found = list(_batch_augments(config)) if config.train_cfg.get("type") == "FrozenTrainLoop" else []
    if found:
        kinds = ", ".join(str(augment.get("type")) for _, augment in found)
        options = " ".join(f"{key}=None" for key in dict.fromkeys(key for key, _ in found))
        raise InputError(
            f"{kinds} can't be applied to frozen features, which are computed once for each photo",
            f"--cfg-options {options} trains without, and a config without freezing trains with {kinds}",
        )


@_of_a_known_form
def probe(config: Config) -> None:
    """Fit the head alone (``LinearProbeLoop``), on images 9/16 as wide: a third of the arithmetic.

    Raises:
        InputError: As ``freeze``.
    """
    _refuse_switch(config, "--probe")
    _scale_images(config, PROBE_SCALE)
    config.train_cfg = dict(type="LinearProbeLoop", max_epochs=1)
    config.param_scheduler = []  # no step is taken


def _refuse_switch(config: Config, flag: str) -> None:
    if switches(config, "train_pipeline"):
        what = f"{flag} computes all features before the training, and SwitchRecipeHook changes the pipeline in it"
        raise InputError(what, f"leave out {flag}, or train_pipeline in the hook's schedule")
