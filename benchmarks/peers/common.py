"""What the adapters share: their options, the start network, the photos, the recipe where a tool leaves it to its user,
and the lines they print. Nothing of mmflowers is used, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib import import_module
from pathlib import Path

# Seconds of the epoch at which the driver started this process; by hand, when this line is reached.
START = float(os.environ.get("PEER_STARTED", time.time()))

# Mean and standard deviation of the pixels (0 to 1) that the start weights were trained on.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NETWORKS = {
    "tf_efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "resnet18": IMAGENET,
    "resnet50": IMAGENET,
}

# configs/_base_/schedules/sgd_8e.py and datasets/flowers_224.py.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.02, 0.9, 1e-4
LABEL_SMOOTHING = 0.1
WARMUP_START = 0.01  # of the learning rate, rising over the first epoch
CROP_SCALE = (0.3, 1.0)  # of the photo's area

SETTLING = 10  # iterations at the start of a run that its rate leaves out


def parse_arguments(description: str) -> argparse.Namespace:
    """The options of every adapter; ``classes``, ``train``, ``val``, ``mean`` and ``std`` follow from them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder")
    parser.add_argument("--work-dir", type=Path, required=True, metavar="DIR", help="for checkpoints")
    parser.add_argument("--network", choices=NETWORKS, default="tf_efficientnet_lite0")
    parser.add_argument("--weights", metavar="FILE", help="a .pth in timm's key names (default: start from scratch)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, help="default: the recipe's")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop to train on")
    parser.add_argument("--val-resize", type=int, default=288, help="pixels of the short edge before the centre crop")
    parser.add_argument("--val-size", type=int, default=256, help="pixels of the centre crop")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.classes = (args.data / "classes.txt").read_text(encoding="utf-8").splitlines()
    args.train, args.val = (read_list(args.data, split) for split in ("train", "val"))
    args.mean, args.std = NETWORKS[args.network]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    return args


def read_list(root: Path, split: str) -> list[tuple[str, int]]:
    """Paths of a split's photos with their labels."""
    lines = (line.rpartition(" ") for line in (root / f"{split}.txt").read_text(encoding="utf-8").splitlines())
    return [(str(root / name), int(label)) for name, _, label in lines]


def use_bfloat16(args: argparse.Namespace) -> bool:
    """Whether to run under bfloat16 autocast; "auto" asks the GPU, or else the processor, whether it has it."""
    import torch

    if args.amp != "auto":
        return args.amp == "on"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    processor = Path("/proc/cpuinfo")
    return processor.exists() and any(flag in processor.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def get_device():
    """The GPU where there is one."""
    import torch

    torch.backends.cudnn.benchmark = True  # a stack of images has one shape
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_network(args: argparse.Namespace):
    """The network with the start weights and a new head, laid out channels-last.

    The head starts small, as MMPretrain's does. timm's own start for an EfficientNet is uniform within 1/√classes,
    which for a few classes makes large logits of no meaning, and a slow beginning.
    """
    import timm
    import torch

    overlay = dict(file=args.weights) if args.weights else None
    network = timm.create_model(
        args.network, pretrained=bool(overlay), pretrained_cfg_overlay=overlay, num_classes=len(args.classes)
    )
    torch.nn.init.normal_(network.get_classifier().weight, std=0.01)
    torch.nn.init.zeros_(network.get_classifier().bias)
    return network.to(memory_format=torch.channels_last)


class Photos:
    """A map-style dataset of (photo, label): a PIL image in RGB, or what ``transform`` makes of it."""

    def __init__(self, samples: list[tuple[str, int]], transform=None) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        from PIL import Image

        path, label = self.samples[index]
        with Image.open(path) as image:
            photo = image.convert("RGB")
        return (self.transform(photo) if self.transform else photo), label


def crops(args: argparse.Namespace) -> tuple[list, list]:
    """The random transforms of training and the fixed ones of validation, from PIL image to PIL image."""
    from torchvision import transforms

    return (
        [transforms.RandomResizedCrop(args.size, CROP_SCALE), transforms.RandomHorizontalFlip()],
        [transforms.Resize(args.val_resize), transforms.CenterCrop(args.val_size)],
    )


def datasets(args: argparse.Namespace) -> tuple[Photos, Photos]:
    """The photos to train on and to validate on, as normalized tensors of 3 x H x W."""
    from torchvision import transforms

    to_tensor = [transforms.ToTensor(), transforms.Normalize(args.mean, args.std)]
    return tuple(
        Photos(samples, transforms.Compose([*steps, *to_tensor]))
        for samples, steps in zip((args.train, args.val), crops(args), strict=True)
    )


def loaders(args: argparse.Namespace):
    """DataLoaders of ``datasets``, training shuffled, with workers that live on."""
    import torch
    from torch.utils.data import DataLoader

    shared = dict(
        batch_size=args.batch_size,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    train, val = datasets(args)
    return DataLoader(train, shuffle=True, **shared), DataLoader(val, **shared)


def optimizer_and_schedule(model, args: argparse.Namespace, steps_per_epoch: int):
    """SGD with Nesterov's momentum, and a rate that rises over the first epoch and falls as a cosine to the end.

    Normalization and biases take no weight decay. The schedule is stepped after every iteration.
    """
    from torch.optim import SGD
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = SGD(
        [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr or LEARNING_RATE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    rise = LinearLR(optimizer, start_factor=WARMUP_START, total_iters=steps_per_epoch)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, (args.epochs - 1) * steps_per_epoch))
    return optimizer, SequentialLR(optimizer, [rise, fall], milestones=[steps_per_epoch])


class Report:
    """Prints a JSON line an epoch, and a last one with peak memory and versions.

    Images are counted, and their rate is taken, where they enter the network: so both mean the same for every tool.

    Args:
        network: Called once for each batch, with ``training`` as it is.
        args: The adapter's options.
    """

    def __init__(self, network, args: argparse.Namespace) -> None:
        self._val_photos = len(args.val)
        self._epochs = self._images = self._validated = 0
        self._batches: list[tuple] = []  # when each training batch of the epoch entered, and its size
        network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network, inputs: tuple, named: dict) -> None:
        images = inputs[0] if inputs else named["pixel_values"]  # as transformers calls them
        if not network.training:
            self._validated += len(images)
            return
        self._images += len(images)
        if images.is_cuda:  # where the GPU is, not where Python is, which runs ahead
            import torch

            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._batches.append((now, len(images)))

    def epoch(self, top1: float) -> None:
        """Print the line of an epoch, as soon as its validation has said ``top1``, in percent.

        Raises:
            RuntimeError: Validation didn't see each photo once.
        """
        seconds = time.time() - START
        self._epochs += 1
        if self._validated != self._val_photos:
            raise RuntimeError(f"validation saw {self._validated} photos, of {self._val_photos} in the list")
        rate = self._rate()
        _print(epoch=self._epochs, seconds=seconds, top1=float(top1), images=self._images, images_per_second=rate)
        self._validated = 0
        self._batches = []

    def _rate(self) -> float | None:
        """Training images/s of the epoch, from the start of one batch to that of a later one."""
        batches = self._batches[min(SETTLING, (len(self._batches) - 1) // 2) :] if self._epochs == 1 else self._batches
        if len(batches) < 2:
            return None
        (first, _), (last, _) = batches[0], batches[-1]
        seconds = last - first if isinstance(first, float) else first.elapsed_time(last) / 1000
        return sum(count for _, count in batches[:-1]) / seconds

    def close(self, *packages: str) -> None:
        """Print the last line; ``packages`` are those whose versions say what was measured."""
        import torch

        gpu = torch.cuda.is_available()
        _print(
            peak_rss_mb=_peak_rss_mb(),
            peak_gpu_mb=torch.cuda.max_memory_allocated() / 2**20 if gpu else None,
            gpu=torch.cuda.get_device_name() if gpu else None,
            versions={"python": platform.python_version()}
            | {package: import_module(package).__version__ for package in ("torch", "torchvision", "timm", *packages)},
        )


def _peak_rss_mb() -> float | None:
    """Peak resident memory of this process, without its loader workers."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux kilobytes


def _print(**values) -> None:
    print(f"\n{json.dumps(values)}", flush=True)  # a line of its own, even where a progress bar stands
