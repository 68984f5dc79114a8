"""Kill and stop a small training again and again; resumed, it must end in the weights of one left alone.

    python tests/soak.py                       # 50 × SIGKILL, half of them inside a checkpoint write, 20 × SIGTERM
    python tests/soak.py --kills 4 --terms 2   # a taste

Real processes (``tools/train.py``), real signals. After every one the checkpoints that are there must load; at every
end weights, optimizer and best score must equal the reference's, which ran undisturbed and with another number of
loader workers. Exit code 1 and the work dir's name where they don't.
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

    def start(self, name: str, *, workers: int) -> subprocess.Popen:
        """Start the training ``name`` or go on with it."""
        resume = (self.folder / name / "last.pth").exists()
        how = ["--resume"] if resume else ["--weights", "none"]
        loaders = [f"{side}_dataloader.{key}" for side in ("train", "val") for key in (f"num_workers={workers}",)]
        command = [sys.executable, str(ROOT / "tools" / "train.py"), str(self.config), "--data", "data"]
        command += ["--work-dir", name, *how, "--cfg-options", *loaders]
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
        partial = next(
            iter([path for path in (folder / ".last.pth.partial", folder / ".best.pth.partial") if path.exists()]), None
        )
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


def soak(folder: Path, kills: int, terms: int, rng: random.Random) -> Counter:
    """Do all the harm; what was done, counted."""
    trainings = Trainings(folder)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mmflowers-soak-"))
    start = time.monotonic()
    try:
        done = soak(folder, args.kills, args.terms, random.Random(args.seed))
    except Failure as failure:
        sys.exit(f"FAILED: {failure}")
    shutil.rmtree(folder)
    for what, count in sorted(done.items()):
        print(f"{count:4d} × {what}")
    print(f"all equal to the bit, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
