# PYTHON_ARGCOMPLETE_OK
"""Exercise 2: fine-tune a ResNet-18 on a folder of flowers, in plain PyTorch and torchvision.

examples:
  python tools/train_torch.py                        # the whole exercise: 25 epochs on flower_dataset/
  python tools/train_torch.py --resume               # continue after an interruption
  python tools/train_torch.py --amp --batch-size 64  # bfloat16 and a larger batch: faster, not the exercise's recipe

Read the file from top to bottom: constants, command line, transforms, data, model, one epoch, files, checks, training.
The dataset folder and its split are those of Exercise 1 (tools/prepare_flowers.py), so the accuracies are comparable.

The work dir gets best_model.pth (the state_dict of the epoch with the best validation accuracy), classes.txt,
history.txt and history.csv (one row per epoch, accuracies in percent) and last.pth (for --resume). On the CPU, a
resumed run gives bit-identical weights to an uninterrupted one, with the same number of workers and threads.
A work dir that already holds a run is not changed unless --resume or --force is given.
"""
# ruff: noqa: E402  torch is imported after the command line is parsed, so that --help and wrong options respond at once

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import math
import os
import random
import socket
import sys
import time
from functools import partial
from http.client import HTTPException
from multiprocessing.pool import ThreadPool
from pathlib import Path

from mmflowers.checks.findings import report
from mmflowers.checks.run import check_dataset
from mmflowers.cli.parser import Parser
from mmflowers.cli.process import run
from mmflowers.datasets.folder import DatasetFolder, read_dataset_folder
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import hold_work_dir
from mmflowers.utils.terminal import progress

# The recipe
EPOCHS = 25
BATCH_SIZE = 32
LEARNING_RATE = 0.001
MOMENTUM = 0.9
STEP_EPOCHS, STEP_FACTOR = 7, 0.1  # the learning rate falls tenfold after 7, 14 and 21 epochs

# The images
CROP, RESIZE = 224, 256  # pixels: input size of the network; shorter side before validation's centre crop
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, RGB in 0..1, as the pretrained layers expect
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02}  # little hue: flowers differ in colour
ROTATION = 15  # degrees, in both directions
AFFINE = {
    "degrees": 0,
    "translate": (0.1, 0.1),
    "scale": (0.9, 1.1),
    "shear": 5,
}  # translate as a share of the side; shear in degrees

WEIGHTS = "resnet18-f37072fd.pth"  # torchvision's ResNet18_Weights.IMAGENET1K_V1
NETWORK_TIMEOUT = 20  # seconds without an answer


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("flower_dataset"),
        metavar="DIR",
        help="dataset folder (default: flower_dataset)",
    )
    work_dir = Path("work_dirs/torch_resnet18")
    parser.add_argument(
        "--work-dir", type=Path, default=work_dir, metavar="DIR", help=f"output folder (default: {work_dir})"
    )
    weights_help = "local file with torchvision's key names; none = from scratch (default: download torchvision's)"
    parser.add_argument("--weights", metavar="FILE|none", help=weights_help)
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"number of epochs (default: {EPOCHS})")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"photos per batch (default: {BATCH_SIZE})"
    )
    parser.add_argument(
        "--lr", type=float, default=LEARNING_RATE, metavar="X", help=f"learning rate (default: {LEARNING_RATE})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast and channels-last memory")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="device to train on (default: auto, a GPU if there is one)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that load photos (default: one per core, at most 4)",
    )
    parser.add_argument(
        "--start-method",
        choices=("default", "spawn", "fork"),
        default="default",
        help="start method of the worker processes (default: PyTorch's)",
    )
    parser.add_argument("--skip-checks", action="store_true", help="skip the checks of tools/check.py")
    rerun = parser.add_mutually_exclusive_group()
    rerun.add_argument("--resume", action="store_true", help="resume from last.pth in the work dir")
    rerun.add_argument("--force", action="store_true", help="replace the run in the work dir")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision import transforms as T

from mmflowers.datasets.identity import PhotoSet, copies, from_state, joined, match_prepared, read_photos

# ---------------------------------------------------------------------------------------------------- transforms

SMOOTH = T.InterpolationMode.BILINEAR
TRAIN_TRANSFORMS = [
    T.RandomResizedCrop(CROP),
    T.RandomHorizontalFlip(),
    T.ColorJitter(**JITTER),
    T.RandomRotation(ROTATION, interpolation=SMOOTH),
    T.RandomAffine(**AFFINE, interpolation=SMOOTH),
    T.ToTensor(),
    T.Normalize(MEAN, STD),
]
VAL_TRANSFORMS = [T.Resize(RESIZE), T.CenterCrop(CROP), T.ToTensor(), T.Normalize(MEAN, STD)]

# ---------------------------------------------------------------------------------------------------------- data


def read_image(path: Path) -> Image.Image:
    """Decode a photo as RGB; raise InputError if any part of it can't be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error …
        raise InputError(
            f"{path} can't be decoded: {error}", "tools/prepare_flowers.py leaves such files out"
        ) from None


class Flowers(Dataset):
    """The photos of one split of the dataset folder as (3 x 224 x 224 float32 tensor, label) pairs."""

    def __init__(self, root: Path, samples: list[tuple[str, int]], steps: list) -> None:
        self.root, self.samples, self.transform = root, samples, T.Compose(steps)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        name, label = self.samples[index]
        return self.transform(read_image(self.root / name)), label


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; a DataLoader takes its order and its workers' seeds from torch's generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# --------------------------------------------------------------------------------------------------------- model


def load(path: Path) -> dict:
    """Load a dict written by torch.save, tensors and plain values only: a full pickle could execute any code."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, OSError: it depends on the damage
        # torch's own message is left out, because it advises loading the file unsafely.
        reason = getattr(error, "strerror", None) or "it is damaged, or holds more than tensors and plain values"
        raise InputError(f"{path} can't be loaded safely: {reason}", "a .pth file of plain tensors is needed") from None


def imagenet_weights() -> dict:
    """Return torchvision's own weights, from its cache or downloaded into it and verified."""
    path = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS)
    if path.is_file():
        return load(path)
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        enum = models.ResNet18_Weights.IMAGENET1K_V1
        return enum.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # no answer, connection lost, wrong hash
        hint = f"put {WEIGHTS} into {path.parent}, or name a copy with --weights FILE (--weights none: from scratch)"
        raise InputError(f"{WEIGHTS} can't be downloaded: {error}", hint) from None
    finally:
        socket.setdefaulttimeout(None)


def resnet18(weights: str | None) -> nn.Module:
    """Build ImageNet's ResNet-18 with torchvision's weights (None), random weights ("none"), or weights from a file.

    Raises:
        InputError: The weights aren't a ResNet-18 with torchvision's key names; each difference is named.
    """
    model = models.resnet18()
    if weights == "none":
        return model
    state_dict = load(Path(weights).expanduser()) if weights else imagenet_weights()

    def shapes(tensors: dict) -> dict:  # to compare: without the last layer and the counters that old files lack
        named = {str(name): tuple(getattr(tensor, "shape", ["no tensor"])) for name, tensor in tensors.items()}
        return {n: shape for n, shape in named.items() if not n.startswith("fc.") and "num_batches_tracked" not in n}

    given, needed = shapes(state_dict), shapes(model.state_dict())
    wrong = [f"{name} is missing" for name in needed.keys() - given.keys()]
    wrong += [f"{name} is not expected" for name in given.keys() - needed.keys()]
    both = given.keys() & needed.keys()
    wrong += [f"{name} is {given[name]}, not {needed[name]}" for name in both if given[name] != needed[name]]
    if wrong:
        what = f"{weights or WEIGHTS} isn't a ResNet-18 with torchvision's key names: {', '.join(sorted(wrong))}"
        raise InputError(what, f"use {WEIGHTS}, for example")
    model.load_state_dict({name: state_dict[name] for name in given}, strict=False)
    return model


# ----------------------------------------------------------------------------------------------------- one epoch

criterion = nn.CrossEntropyLoss()  # the mean over a batch


def one_epoch(model: nn.Module, loader: DataLoader, optimizer, device, amp: bool, what: str) -> tuple[float, int]:
    """Go through all photos once, and train on them if an optimizer is given.

    Returns:
        The mean loss per photo and the number of correct predictions.
    """
    training = optimizer is not None
    model.train(training)  # BatchNorm uses the batch's statistics in training and its running statistics in evaluation
    layout = torch.channels_last if amp else torch.preserve_format
    loss_sum, correct = 0.0, 0
    for images, labels in progress(loader, total=len(loader), what=what, every_seconds=60):
        images = images.to(device, non_blocking=True, memory_format=layout)
        labels = labels.to(device, non_blocking=True)
        with torch.set_grad_enabled(training):
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                outputs = model(images)
                loss = criterion(outputs, labels)
            if training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"{what}: the loss became {value}", "try a smaller --lr; this epoch is not saved")
        loss_sum += value * len(labels)  # weighted, as the last batch is smaller
        correct += (outputs.argmax(1) == labels).sum().item()
    return loss_sum / len(loader.dataset), correct


# --------------------------------------------------------------------------------------------------------- files


def write(path: Path, content: str | dict) -> None:
    """Write text, or a dict of tensors, to a file atomically: after a crash the old or the new file is complete."""
    buffer = io.BytesIO(content.encode() if isinstance(content, str) else b"")
    if not isinstance(content, str):
        torch.save(content, buffer)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        hint = "free disk space or choose another --work-dir; --resume continues after the last complete epoch"
        raise InputError(f"{path} can't be written: {error.strerror}", hint) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_history(work_dir: Path, history: list[dict], best: str) -> None:
    table = io.StringIO()
    rows = csv.DictWriter(table, history[0], lineterminator="\n")
    rows.writeheader()
    rows.writerows(history)
    write(work_dir / "history.csv", table.getvalue())
    row = "{epoch:5}  {lr:7.2g}  {train_loss:10.4f}  {train_acc:7.2f} %  {val_loss:8.4f}  {val_acc:5.2f} %"
    lines = [f"{'epoch':>5}  {'lr':>7}  train_loss  train_acc  val_loss  val_acc", *(row.format(**h) for h in history)]
    write(work_dir / "history.txt", "\n".join([*lines, best, ""]))


# ------------------------------------------------------------------------------------------ checks before training


def read_and_decode(data: Path) -> DatasetFolder:
    """Read the dataset folder and decode each photo once, so that a broken one is found before the first epoch."""
    folder = read_dataset_folder(data)
    names = [name for samples in folder.samples.values() for name, _ in samples]

    def problems_of(name: str) -> list[Problem]:
        try:
            read_image(data / name)
        except InputError as error:
            return error.problems
        return []

    with ThreadPool(os.cpu_count()) as pool:  # threads are enough: Pillow releases the GIL while it decodes
        decoded = progress(pool.imap(problems_of, names, chunksize=8), total=len(names), what="checking photos")
        if problems := [problem for found in decoded for problem in found]:
            raise InputError(problems=problems)
    return folder


def trained_before(weights: str | None) -> PhotoSet | None:
    """Return the photos that the weights of an earlier run were trained on, from last.pth in the same folder."""
    beside = Path(weights or WEIGHTS).expanduser().with_name("last.pth")
    return from_state(load(beside).get("trained_on")) if weights not in (None, "none") and beside.is_file() else None


def check_split(folder: DatasetFolder, val: PhotoSet, weights: str | None) -> None:
    """Refuse weights that were trained on photos of val, even if their names or formats differ."""
    trained_on = trained_before(weights)
    if trained_on is None:
        return
    found = copies(val, trained_on)
    if seen := [name for (name, _), is_seen in zip(folder.samples["val"], found, strict=True) if is_seen]:
        what = f"{weights} was trained on {len(seen)} of the {len(val)} photos of val ({', '.join(seen[:3])} …)"
        raise InputError(what, "keep the split it was trained with, or start from weights that weren't trained on them")


def pick_device(name: str) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise InputError(f"--device {name}: PyTorch finds no such device", "--device auto chooses an available one")
    return torch.device(name)


def open_work_dir(work_dir: Path, resume: bool, force: bool) -> dict | None:
    """Return the state to resume from; None for a new run."""
    names = [name for name in ("last.pth", "best_model.pth") if (work_dir / name).is_file()]
    if resume and len(names) < 2:
        raise InputError(f"{work_dir} has no last.pth and best_model.pth to resume from", "start without --resume")
    if names and not (resume or force):
        hint = "--resume continues it, --force replaces it, --work-dir names another folder"
        raise InputError(f"{work_dir} holds a run already", hint)
    return load(work_dir / "last.pth") if resume else None


# ------------------------------------------------------------------------------------------------------ training


def main(args: argparse.Namespace) -> None:
    problems: list[Problem] = []  # all problems are reported together, before training

    def attempt(step, *arguments):
        try:
            return step(*arguments)
        except InputError as error:
            problems.extend(error.problems)

    for flag, value, least in (
        ("epochs", args.epochs, 1),
        ("batch-size", args.batch_size, 1),
        ("workers", args.workers, 0),
    ):
        if value < least:
            problems.append(Problem(f"--{flag} {value} is too small", f"{least} or more"))
    if not 0 < args.lr < math.inf:
        problems.append(Problem(f"--lr {args.lr} must be a positive number", f"the exercise uses {LEARNING_RATE}"))
    seed_everything(1000 * args.seed)
    folder = attempt(read_and_decode, args.data)
    device = attempt(pick_device, args.device)
    state = attempt(open_work_dir, args.work_dir, args.resume, args.force)
    model = attempt(resnet18, "none" if args.resume else args.weights)  # a resumed run loads its own weights below
    photos = {}  # identified by content, since names can change and photos can be replaced
    if folder:
        for split, samples in folder.samples.items():
            photos[split] = read_photos([(args.data / name, label) for name, label in samples])
    if folder and not (args.resume or args.skip_checks):
        attempt(check_split, folder, photos["val"], args.weights)
    if not args.skip_checks:
        said = {problem.what for problem in problems}
        findings = [finding for finding in check_dataset(args.data) if finding.what not in said]
        problems += [Problem(finding.what, finding.hint) for finding in findings if finding.level == "error"]
    if problems:
        raise InputError(problems=problems)
    contents = [(split, found.content.tolist(), found.labels.tolist()) for split, found in photos.items()]
    digest = hashlib.sha256(repr((folder.classes, contents)).encode()).hexdigest()[:16]
    settings = {"dataset": digest, "batch_size": args.batch_size, "lr": args.lr, "seed": args.seed, "amp": args.amp}
    if state and state.get("settings") != settings:
        what = f"{args.work_dir / 'last.pth'} is of another run: {state.get('settings')}, now {settings}"
        raise InputError(what, "resume with the settings and the dataset of that run, or start a new run with --force")
    with hold_work_dir(args.work_dir):  # after all checks, because files are written into it from here on
        if not args.skip_checks:
            report(findings, args.work_dir)
        train(args, device, folder, photos, model, settings, state)


def train(
    args: argparse.Namespace,
    device: torch.device,
    folder: DatasetFolder,
    photos: dict[str, PhotoSet],
    model: nn.Module,
    settings: dict,
    state: dict | None,
) -> None:
    """Train to the last epoch, from the start or from ``state``, the content of last.pth."""
    model.fc = nn.Linear(model.fc.in_features, len(folder.classes))  # instead of ImageNet's 1,000 classes
    model.to(device, memory_format=torch.channels_last if args.amp else torch.preserve_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=MOMENTUM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=STEP_EPOCHS, gamma=STEP_FACTOR)
    history, best_correct, best = [], -1, ""
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history, best_correct, best = state["history"], state["best_correct"], state["best"]

    loading = {"batch_size": args.batch_size, "num_workers": args.workers, "pin_memory": device.type == "cuda"}
    if args.workers and args.start_method != "default":
        loading["multiprocessing_context"] = args.start_method
    train_set = Flowers(args.data, folder.samples["train"], TRAIN_TRANSFORMS)
    earlier = from_state(state.get("trained_on")) if state else trained_before(args.weights)
    trained_on = joined([photos["train"], earlier]).state()
    val_set = Flowers(args.data, folder.samples["val"], VAL_TRANSFORMS)
    train_loader = DataLoader(train_set, shuffle=True, **loading)  # new workers in each epoch, to use its seed
    val_loader = DataLoader(val_set, persistent_workers=args.workers > 0, **loading)
    names = [name for name, _ in folder.samples["val"]]
    match = match_prepared(args.data, "val", names, otherwise=names)  # otherwise: for a folder that was made by hand
    there = f"{len(names) - len(match.added)} of {len(match.prepared)} prepared photos of val"
    measured = f"accuracy on {there}" if match.missing or match.added else "val top-1"
    counts = f"{len(train_set)} photos to train, {len(val_set)} to validate, {len(folder.classes)} classes"
    print(f"{counts} · {device} · weights: {'last.pth' if state else args.weights or WEIGHTS}", file=sys.stderr)

    if args.force:
        for name in ("last.pth", "best_model.pth", "history.csv", "history.txt"):
            (args.work_dir / name).unlink(missing_ok=True)
    write(args.work_dir / "classes.txt", "".join(f"{name}\n" for name in folder.classes))

    for epoch in range(len(history) + 1, args.epochs + 1):
        started = time.perf_counter()
        # Everything random in an epoch depends on this seed, so --resume needs no state of a generator.
        seed_everything(1000 * args.seed + epoch)
        what, lr = f"epoch {epoch}/{args.epochs}", optimizer.param_groups[0]["lr"]
        train_loss, train_correct = one_epoch(model, train_loader, optimizer, device, args.amp, f"{what} train")
        val_loss, val_correct = one_epoch(model, val_loader, None, device, args.amp, f"{what} val")
        scheduler.step()

        train_acc, val_acc = 100 * train_correct / len(train_set), 100 * val_correct / len(val_set)  # percent
        results = {"train_loss": train_loss, "train_acc": train_acc, "val_loss": val_loss, "val_acc": val_acc}
        history.append({"epoch": epoch, "lr": lr, **results})
        if val_correct > best_correct:
            best_correct = val_correct
            best = f"best {measured} {val_acc:.2f} % ({val_correct}/{len(val_set)}) at epoch {epoch}"
            write(args.work_dir / "best_model.pth", {name: tensor.cpu() for name, tensor in model.state_dict().items()})
        write_history(args.work_dir, history, best)
        state = {"settings": settings, "history": history, "best_correct": best_correct, "best": best}
        state |= {"trained_on": trained_on}
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        write(args.work_dir / "last.pth", state)  # written last: --resume repeats an epoch that was interrupted
        numbers = f"train loss {train_loss:.4f} acc {train_acc:.2f} %  val loss {val_loss:.4f} acc {val_acc:.2f} %"
        print(f"{what}  lr {lr:.2g}  {numbers}  {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    print(best)
    print(f"weights {args.work_dir / 'best_model.pth'}")
    print(f"history {args.work_dir / 'history.csv'}")


if __name__ == "__main__":
    run(partial(main, ARGUMENTS))
