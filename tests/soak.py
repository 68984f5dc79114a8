"""Kill and stop a small training again and again; resumed, it must end in the weights of one left alone.

    python tests/soak.py   # 50 × SIGKILL, half of them inside a checkpoint write, 20 × SIGTERM; then the rest, below
    python tests/soak.py --kills 4 --terms 2 --frozen 1 --edits 0   # a taste

Real processes (``tools/train.py``), real signals. After every one the checkpoints that are there must load; at every
end weights, optimizer and best score must equal the reference's, which ran undisturbed and with another number of
loader workers. Exit code 1 and the work dir's name where they don't.

The rest: SIGKILL between two checkpoints of --freeze-to and --probe, and tools/train_torch.py resumed after its dataset
was edited, which must be refused in one line and leave every file of the work dir as it was.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
EPOCHS = 4  # of 5 iterations, with a checkpoint before each validation and at the end
LIMIT = 600  # seconds that one process may take
CONFIG = f"""\
_base_ = {str(ROOT / "configs" / "resnet18_flowers.py")!r}
model = dict(backbone=dict(base_channels=32, stem_channels=32), head=dict(in_channels=256))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max={EPOCHS}, convert_to_iter_based=True)]
train_cfg = dict(max_epochs={EPOCHS})
"""


class Failure(Exception):
    """Something was lost, torn or different."""


class Trainings:
    """Starts trainings in folders of their own below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "tiny.py"
        self.config.write_text(CONFIG, encoding="utf-8")
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._run("prepare_flowers.py", "--rendered", "10", "--out", "data")

    def _run(self, tool: str, *arguments: str) -> None:
        command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def start(self, name: str, *options: str, workers: int) -> subprocess.Popen:
        """Start the training ``name`` or go on with it; ``options`` are more of ``tools/train.py``."""
        resume = (self.folder / name / "last.pth").exists()
        how = ["--resume"] if resume else ["--weights", "none"]
        loaders = [f"{side}_dataloader.{key}" for side in ("train", "val") for key in (f"num_workers={workers}",)]
        command = [sys.executable, str(ROOT / "tools" / "train.py"), str(self.config), "--data", "data"]
        command += ["--work-dir", name, *how, *options, "--cfg-options", *loaders]
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def begun(self, name: str, process: subprocess.Popen, runs: int) -> bool:
        """Wait until the process has built its Runner; False if it ended before."""
        while process.poll() is None:
            if len(list((self.folder / name).glob("*/*.log"))) > runs:
                return True
            time.sleep(0.01)
        return False

    def checkpoints(self, name: str) -> dict[str, dict]:
        """All that is there, loaded; a torn one is a failure."""
        found = {}
        for path in (self.folder / name).glob("*.pth"):
            if path.name.startswith("."):
                continue
            try:
                found[path.name] = torch.load(path, weights_only=True)
            except Exception as error:
                raise Failure(f"{path} doesn't load: {error}") from error
        return found


def at_a_random_instant(folder: Path, process: subprocess.Popen, rng: random.Random, seconds: float) -> None:
    """Wait for some share of the time that a whole training takes."""
    deadline = time.monotonic() + rng.uniform(0, seconds)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def inside_a_write(folder: Path, process: subprocess.Popen, rng: random.Random, seconds: float) -> None:
    """Wait until a checkpoint is being written, one of the next few."""
    passed_over, seen = rng.randrange(4), None
    while process.poll() is None:
        partial = next(folder.glob(".*.pth.partial"), None)
        if partial is None:
            seen = None
        elif seen != partial:
            seen, passed_over = partial, passed_over - 1
            if passed_over < 0:
                time.sleep(rng.uniform(0, 0.005))
                return


def differences(one: object, other: object, where: str) -> list[str]:
    """Places where two checkpoints' parts differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [where]
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{where}[{number}]")]
    return [] if one == other else [where]


def compare(name: str, found: dict[str, dict], reference: dict[str, dict]) -> None:
    """Hold an ended training's checkpoints against the reference's."""
    parts = [("last.pth", part) for part in ("state_dict", "optimizer", "param_schedulers")]
    for file, part in [*parts, ("best.pth", "state_dict")]:
        if wrong := differences(found[file][part], reference[file][part], part):
            raise Failure(f"{name}/{file} differs from the undisturbed run's in {len(wrong)} places: {wrong[:3]}")
    for key in ("best_score", "best_epoch"):
        if (
            found["last.pth"]["message_hub"]["runtime_info"][key]
            != reference["last.pth"]["message_hub"]["runtime_info"][key]
        ):
            raise Failure(f"{name}: another {key}")


def soak(trainings: Trainings, kills: int, terms: int, rng: random.Random) -> Counter:
    """Kill and stop a plain training; what was done, counted."""
    folder = trainings.folder
    start = time.monotonic()
    process = trainings.start("reference", workers=0)
    trainings.begun("reference", process, 0)
    begun = time.monotonic()
    if process.wait(LIMIT):
        raise Failure(f"the undisturbed run failed: {folder / 'reference.log'}")
    seconds = time.monotonic() - begun
    print(f"undisturbed: {begun - start:.1f} s to start, {seconds:.1f} s to train", flush=True)
    reference = trainings.checkpoints("reference")

    inside = kills // 2
    plan = [("SIGKILL inside a write", inside_a_write, signal.SIGKILL)] * inside
    plan += [("SIGKILL anywhere", at_a_random_instant, signal.SIGKILL)] * (kills - inside)
    plan += [("SIGTERM anywhere", at_a_random_instant, signal.SIGTERM)] * terms
    rng.shuffle(plan)
    done: Counter = Counter()
    number = runs = 0
    while plan or runs:
        name, workers = f"run{number}", 2 * (number % 2)
        started = time.time()
        process = trainings.start(name, workers=workers)
        try:
            if plan and trainings.begun(name, process, runs):
                what, wait, signum = plan[-1]
                wait(folder / name, process, rng, seconds)
                if process.poll() is None:
                    process.send_signal(signum)
            code = process.wait(LIMIT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        partials = (folder / name).glob(".*partial")  # an earlier kill may have left one that wasn't written over yet
        torn = [path for path in partials if path.stat().st_mtime > started]
        found = trainings.checkpoints(name)
        # Python takes its handlers back as it exits: a signal can still come when all is done.
        if code == 0 or (code == -signal.SIGTERM and b"results: " in (folder / f"{name}.log").read_bytes()[-100:]):
            compare(name, found, reference)
            done["trainings that ended equal"] += 1
            shutil.rmtree(folder / name)
            number, runs = number + 1, 0
            continue
        if not plan or code not in (-signal.SIGKILL, 128 + signal.SIGTERM):
            raise Failure(f"exit code {code}: {folder / name}.log")
        runs = len(list((folder / name).glob("*/*.log")))
        if wait is inside_a_write and not torn:
            done["SIGKILL just after a write (not counted)"] += 1
            continue
        if signum == signal.SIGTERM and torn:
            raise Failure(f"a stop by SIGTERM left {torn[0]}")
        plan.pop()
        done[what] += 1
        if sum(done.values()) % 10 == 0:
            print(dict(done), flush=True)
    return done


# ------------------------------------------------------------------------------------ frozen layers and the probe

FROZEN = {"--freeze-to": ("--freeze-to", "layer3", "--views", "2"), "--probe": ("--probe",)}


def soak_frozen(trainings: Trainings, kills: int, rng: random.Random) -> Counter:
    """``kills`` × SIGKILL between checkpoints for each of ``FROZEN``."""
    done: Counter = Counter()
    for what, options in FROZEN.items():
        name, folder = what.strip("-"), trainings.folder
        start = time.monotonic()
        if trainings.start(f"{name} straight", *options, workers=0).wait(LIMIT):
            raise Failure(f"the undisturbed run failed: {folder / name} straight.log")
        seconds = time.monotonic() - start
        reference = trainings.checkpoints(f"{name} straight")
        left = kills
        while left:
            killed, code = 0, -signal.SIGKILL
            while code == -signal.SIGKILL:
                process = trainings.start(name, *options, workers=0)
                if left and wait_between(folder / name, process, rng, seconds):
                    process.send_signal(signal.SIGKILL)
                code = process.wait(LIMIT)
                if code == -signal.SIGKILL:
                    left, killed = left - 1, killed + 1
                trainings.checkpoints(name)
            if code:
                raise Failure(f"exit code {code}: {folder / name}.log")
            compare(name, trainings.checkpoints(name), reference)
            shutil.rmtree(folder / name)
            done[f"SIGKILL between checkpoints of {what}"] += killed
            done[f"trainings with {what} that ended equal"] += 1
    return done


def wait_between(folder: Path, process: subprocess.Popen, rng: random.Random, seconds: float) -> bool:
    """Wait for an instant after the next ``last.pth`` or, in half of the cases, before it; False if the run is over.

    ``seconds`` is how long a whole command takes.
    """
    last = folder / "last.pth"
    if rng.random() < 0.5:
        at_a_random_instant(folder, process, rng, seconds)
    else:
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
    return process.poll() is None


# ------------------------------------------------------------------------ train_torch.py with its dataset edited

Command = Callable[..., tuple[int, str]]  # arguments of tools/train_torch.py -> exit code and stderr


def _rows(data: Path, split: str) -> list[str]:
    return (data / f"{split}.txt").read_text(encoding="utf-8").splitlines()


def _write_rows(data: Path, split: str, rows: list[str]) -> None:
    (data / f"{split}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def replace_photo(data: Path, split: str) -> None:
    """Put another photo under an old name."""
    from PIL import Image, ImageOps

    path = data / _rows(data, split)[0].rpartition(" ")[0]
    with Image.open(path) as image:
        changed = ImageOps.invert(image.convert("RGB"))
    changed.save(path)


def cut_list(data: Path, split: str) -> None:
    _write_rows(data, split, _rows(data, split)[1:])


def exchange_photos(data: Path, split: str) -> None:
    """The first photo of ``split`` and that of the other list change places, each under the other's name."""
    one, other = (data / _rows(data, name)[0].rpartition(" ")[0] for name in ("train", "val"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def move_photo(data: Path, split: str) -> None:
    """From ``split`` to the other list under a new name."""
    other = "train" if split == "val" else "val"
    row, *rest = _rows(data, split)
    name, _, label = row.rpartition(" ")
    target = f"{other}/{Path(name).parent.name}/moved{Path(name).suffix}"
    (data / name).rename(data / target)
    _write_rows(data, split, rest)
    _write_rows(data, other, sorted([*_rows(data, other), f"{target} {label}"]))


def rename_photo(data: Path, split: str) -> None:
    """A new name in the same place of the list: the same photos."""
    name, _, label = _rows(data, split)[0].rpartition(" ")
    target = str(Path(name).with_name(f"0{Path(name).name}").as_posix())
    (data / name).rename(data / target)
    _write_rows(data, split, [f"{target} {label}", *_rows(data, split)[1:]])


def reorder_list(data: Path, split: str) -> None:
    """The same photos in another order, which would be drawn in another order."""
    _write_rows(data, split, _rows(data, split)[::-1])


REFUSED_EDITS = (replace_photo, cut_list, exchange_photos, move_photo, reorder_list)


def soak_edits(folder: Path, data: Path, number: int, command: Command) -> Counter:
    """Resume ``tools/train_torch.py`` after edits of its dataset; the first ``number`` of edits on both lists.

    Every refused one must leave the work dir as it was, and a resumption with nothing edited, or a name alone, end in
    the bits of a run in one go.
    """
    done: Counter = Counter()
    quick = ("--weights", "none", "--device", "cpu", "--batch-size", "8", "--workers", "0")

    def train(data: Path, name: str, epochs: int, *how: str) -> tuple[int, str]:
        return command("--data", data, "--work-dir", folder / name, "--epochs", epochs, *quick, *how)

    for name, epochs in (("torch straight", 2), ("torch", 1)):
        if train(data, name, epochs)[0]:
            raise Failure(f"{folder / name}: the undisturbed run failed")
    before = _contents(folder / "torch")
    for edit, split in [(edit, split) for split in ("train", "val") for edit in REFUSED_EDITS][:number]:
        edited = folder / "edited"
        shutil.copytree(data, edited)
        edit(edited, split)
        code, errors = train(edited, "torch", 2, "--resume")
        told = [line for line in errors.splitlines() if line.startswith("error: ")]
        if code != 2 or len(told) != 1 or "is of another run" not in told[0] or "Traceback" in errors:
            raise Failure(f"{edit.__name__} of {split}: exit code {code}, {errors}")
        if _contents(folder / "torch") != before:
            raise Failure(f"{edit.__name__} of {split}: refused, and the work dir has changed")
        shutil.rmtree(edited)
        done["resumptions of train_torch.py refused after an edit"] += 1
    for name, change in (("as it was", None), ("renamed", rename_photo)):
        edited, run = folder / f"data {name}", f"torch {name}"
        shutil.copytree(data, edited)
        shutil.copytree(folder / "torch", folder / run)
        if change:
            change(edited, "train")
        code, errors = train(edited, run, 2, "--resume")
        if code:
            raise Failure(f"the resumption with the dataset {name} failed: {errors}")
        for file in ("last.pth", "best_model.pth"):
            one, other = (torch.load(folder / of / file, weights_only=True) for of in (run, "torch straight"))
            if wrong := differences(one, other, file):
                raise Failure(f"{run}/{file} differs from the undisturbed run's: {wrong[:3]}")
        if (folder / run / "history.csv").read_bytes() != (folder / "torch straight" / "history.csv").read_bytes():
            raise Failure(f"{run}: another history")
        done["resumptions of train_torch.py that ended equal"] += 1
    return done


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(folder: Path, args: argparse.Namespace) -> Counter:
    """All parts that the arguments ask for."""
    trainings, done = Trainings(folder), Counter()

    def train_torch(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, str(ROOT / "tools" / "train_torch.py"), *map(str, arguments)]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        result = subprocess.run(command, env=trainings.environment, timeout=LIMIT, check=False, **pipes)
        return result.returncode, result.stderr

    if args.kills + args.terms:
        done += soak(trainings, args.kills, args.terms, random.Random(args.seed))
    if args.frozen:
        done += soak_frozen(trainings, args.frozen, random.Random(args.seed))
    if args.edits:
        done += soak_edits(folder, folder / "data", args.edits, train_torch)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--frozen", type=int, default=4, help="SIGKILLs for each of --freeze-to and --probe")
    parser.add_argument(
        "--edits", type=int, default=10, help="of the dataset of train_torch.py; 0 leaves this part out"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mmflowers-soak-"))
    start = time.monotonic()
    try:
        done = everything(folder, args)
    except Failure as failure:
        sys.exit(f"FAILED: {failure}")
    shutil.rmtree(folder)
    for what, count in sorted(done.items()):
        print(f"{count:4d} × {what}")
    print(f"all equal to the bit, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
