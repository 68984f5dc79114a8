"""Time the tools that a user would pick to fine-tune a classifier on a folder of photos, and our own configs.

Each run is a process from scratch; the rounds interleave the tools, each round with a seed of its own. The results go
to OUT/results.json (every run, written after each) and OUT/table.md; what a run said, to OUT/logs.

examples:
  make bench-peers
  python benchmarks/peers/run.py --data flower_dataset --ours "configs/efficientnet_lite0_flowers.py --amp"
  python benchmarks/peers/run.py --data flower_dataset --network resnet50 --epochs 1 --limit 320 --target 0  # rates
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import summary
from common import NETWORKS

from mmflowers.cli.parser import Parser, existing_folder
from mmflowers.cli.process import run
from mmflowers.datasets.folder import DatasetFolder, read_dataset_folder
from mmflowers.utils.errors import InputError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Those that .venv-peers holds. The others need no more than the main environment, and stock MMPretrain is best off in
# it: where transformers is installed, it imports that too, which takes seconds that its users don't wait.
APART = ("transformers", "fastai", "lightning")
PEERS = ("mmpretrain", "torchvision", "timm", *APART)
PACKAGED = "tf_efficientnet_lite0"  # its weights come with a package
RESULTS = "results.json"
EVERY = 0.05  # seconds between two looks at a run


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="dataset folder")
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/peers"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        type=shlex.split,
        metavar="'CONFIG FLAGS'",
        help="what tools/train.py takes; any number of times",
    )
    parser.add_argument("--rounds", type=at_least_one, default=3, help="(default: 3)")
    parser.add_argument("--target", type=float, default=94.0, help="val top-1 in percent to time (default: 94)")
    parser.add_argument("--network", choices=NETWORKS, default=PACKAGED)
    parser.add_argument(
        "--weights", metavar="FILE|none", help=f"a .pth in timm's or torchvision's names (default: {PACKAGED}'s own)"
    )
    recipe = parser.add_argument_group("the peers' recipe (ours: what the config says)")
    recipe.add_argument("--epochs", type=at_least_one, default=8, help="(default: 8)")
    recipe.add_argument("--batch-size", type=at_least_one, default=32, help="(default: 32)")
    recipe.add_argument("--size", type=at_least_one, default=224, help="pixels to train on (default: 224)")
    recipe.add_argument(
        "--val-resize", type=at_least_one, default=288, help="short edge before the crop (default: 288)"
    )
    recipe.add_argument("--val-size", type=at_least_one, default=256, help="centre crop of validation (default: 256)")
    recipe.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="auto: where there is bfloat16")
    workers = min(16, os.cpu_count() or 1)
    recipe.add_argument("--workers", type=int, default=workers, help="processes that decode (default: as cores, to 16)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--limit", type=at_least_one, metavar="N", help="take N photos of either split, evenly from the lists"
    )
    parser.add_argument("--timeout", type=float, default=180, help="minutes a run may take (default: 180)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round (default: 0)")
    parser.add_argument(
        "--python", default=".venv-peers/bin/python", help=f"that has {', '.join(APART)} (default: %(default)s)"
    )
    args = parser.parse_args()
    check(args)
    with tempfile.TemporaryDirectory(prefix="mmflowers-") as folder:
        if args.limit:
            args.data = take_some(args.data, args.limit, Path(folder) / "dataset")
        photos = read_dataset_folder(args.data)
        for name, _ in (*photos.samples["train"], *photos.samples["val"]):
            (args.data / name).read_bytes()  # into the page cache, for all
        results = compare(args, photos, Path(folder))
    print(results, end="")


def at_least_one(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def check(args) -> None:
    """Settle ``weights`` and ``python``, or say what is wrong."""
    if not args.peers and not args.ours:
        raise InputError("nothing to run", "--peers, --ours or both")
    if (args.out / RESULTS).exists():
        raise InputError(f"{args.out} holds results already", "--out names another folder; delete it to start again")
    for ours in args.ours:
        if not ours or not Path(ours[0]).is_file():
            raise InputError(f"--ours {shlex.join(ours)!r} names no config", "it begins with a file of configs/")
    if not Path(args.python).is_file():
        args.python = sys.executable  # a machine with all of them in one environment; what lacks is said by its run
    if args.device == "cuda":
        code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        if subprocess.run([sys.executable, "-c", code], check=False).returncode:
            raise InputError("--device cuda, but PyTorch finds no GPU", "--device auto takes what there is")
    if args.weights is None and args.network == PACKAGED:
        args.weights = str(args.out / f"{PACKAGED}.pth")
        args.out.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, HERE / "weights.py", args.weights], check=True, env=_environment(args))
    elif args.weights is None or (args.weights != "none" and not Path(args.weights).is_file()):
        where = f"for {args.network}" if args.weights is None else f"at {args.weights}"
        raise InputError(f"no weights {where}", "--weights FILE, or --weights none where only rates count")


def take_some(data: Path, count: int, out: Path) -> Path:
    """Copy ``count`` photos of either split to a dataset folder of their own."""
    out.mkdir()
    shutil.copy(data / "classes.txt", out)
    for split, samples in read_dataset_folder(data).samples.items():
        some = min(count, len(samples))
        kept = [samples[index * len(samples) // some] for index in range(some)]
        for name, _ in kept:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / name, out / name)
        (out / f"{split}.txt").write_text("".join(f"{name} {label}\n" for name, label in kept), encoding="utf-8")
    return out


def compare(args, photos: DatasetFolder, folder: Path) -> str:
    """Run everything in rounds, write the files after each run, and return the table."""
    contestants = [("peer", name) for name in args.peers] + [("ours", shlex.join(ours)) for ours in args.ours]
    counts = {f"{split}_photos": len(samples) for split, samples in photos.samples.items()}
    runs: list[dict] = []
    results = {"settings": {**vars(args), **counts}, "machine": machine(), "runs": runs}
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    text = ""
    for number in range(args.rounds):
        turn = number % len(contestants)
        for side, name in contestants[turn:] + contestants[:turn]:  # nobody is always first
            log = args.out / "logs" / f"{contestants.index((side, name))}_{Path(shlex.split(name)[0]).stem}_{number}"
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            done = run_once(args, side, name, folder / "run", number, log, counts["train_photos"])
            runs.append({"name": name, "side": side, "round": number, "load_before": load, **done})
            shutil.rmtree(folder / "run", ignore_errors=True)
            results["summary"] = summary.summarize(runs, args.target)
            text = heading(args, results) + summary.table(results["summary"], args.target)
            (args.out / RESULTS).write_text(json.dumps(_plain(results), indent=1), encoding="utf-8")
            (args.out / "table.md").write_text(text, encoding="utf-8")
            best = max((epoch["top1"] for epoch in done["epochs"]), default=math.nan)
            said = f"failed: {done['reason']}" if done["reason"] else f"best {best:.2f} %, {done['seconds']:.0f} s"
            print(f"round {number + 1}/{args.rounds} {name}: {said}", file=sys.stderr, flush=True)
    return text


def run_once(args, side: str, name: str, work_dir: Path, number: int, log: Path, photos: int) -> dict:
    """What ``finish`` gives of a run, with its ``epochs``, ``versions`` and ``gpu``."""
    seed = args.seed + number
    if side == "peer":
        done = finish(args, peer_command(args, name, work_dir, seed), log)
        done |= read_lines(Path(f"{log}.out").read_text(encoding="utf-8", errors="replace"))
    else:
        watched = Scalars(work_dir, photos)
        done = finish(args, our_command(args, name, work_dir, seed), log, watched.look) | watched.read()
    if done["reason"] is None and not done["epochs"]:
        done["reason"] = "it ended without a validation"
    return done


def peer_command(args, name: str, work_dir: Path, seed: int) -> list[str]:
    python = args.python if name in APART else sys.executable
    options = ("network", "epochs", "batch_size", "size", "val_resize", "val_size", "amp", "workers")
    command = [python, HERE / f"with_{name}.py", "--data", args.data, "--work-dir", work_dir, "--seed", seed]
    for option in options:
        command += [f"--{option.replace('_', '-')}", getattr(args, option)]
    return [str(part) for part in command + (["--weights", args.weights] if args.weights != "none" else [])]


def our_command(args, ours: str, work_dir: Path, seed: int) -> list[str]:
    config, *flags = shlex.split(ours)
    own = [] if any(flag.startswith("--weights") for flag in flags) else ["--weights", args.weights]
    where = ["--data", str(args.data), "--work-dir", str(work_dir), "--seed", str(seed)]
    where += ["--skip-checks"] if args.limit else []  # a part of a dataset folder doesn't know how it was prepared
    return [sys.executable, str(ROOT / "tools" / "train.py"), config, *where, *own, *flags]


def finish(args, command: list[str], stem: Path, look: Callable[[], None] = lambda: None) -> dict:
    """Run a command to its end, its output in ``<stem>.out`` and ``.err``, and ``look`` now and then meanwhile.

    Returns:
        Its ``command``, ``seconds``, ``peak_rss_mb`` (of the process itself, without loader workers; None on Windows)
        and the ``reason`` why it failed, or None.
    """
    peak, reason = None, None
    with open(f"{stem}.out", "wb") as output, open(f"{stem}.err", "wb") as errors:  # noqa: PTH123
        start = time.perf_counter()
        environment = _environment(args) | {"PEER_STARTED": repr(time.time())}
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment, start_new_session=True)
        try:
            while process.returncode is None:
                look()
                if hasattr(os, "wait4"):
                    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                    if pid:
                        process.returncode = os.waitstatus_to_exitcode(status)
                        peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
                else:
                    process.poll()
                if process.returncode is None and time.perf_counter() - start > 60 * args.timeout:
                    reason = f"it ran past {args.timeout:g} minutes"
                    break
                time.sleep(EVERY)
        finally:
            seconds = time.perf_counter() - start
            _end(process)
    look()
    if reason is None and process.returncode:
        said = Path(f"{stem}.err").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        reason = f"exit code {process.returncode}: {last[:200]}"
    return {"command": shlex.join(command), "seconds": seconds, "peak_rss_mb": peak, "reason": reason}


def _end(process: subprocess.Popen) -> None:
    """End a run, and the loader workers that it may have left."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.returncode is None:
        process.kill()
    if process.returncode is None:
        process.wait()


def _environment(args) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    environment |= {"HF_HUB_OFFLINE": "1"}  # nobody's speed is that of a network
    return environment | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {})


def read_lines(output: str) -> dict:
    """The JSON lines among what a peer printed: ``epochs``, and of the last line ``versions`` and ``gpu``."""
    lines = []
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line) if line.startswith("{") else None)
    known = [line for line in lines if isinstance(line, dict)]
    last = next((line for line in known if "versions" in line), {})
    return {"epochs": [line for line in known if "epoch" in line]} | {key: last.get(key) for key in ("versions", "gpu")}


class Scalars:
    """Reads a run of tools/train.py off its ``scalars.json`` while it is written.

    An epoch's ``seconds`` are when its validation was found in the file, at most ``EVERY`` late. The rate is that of
    MMEngine's own iteration times: the log's means, weighted by the iterations that each covers.

    Args:
        work_dir: The run's; need not exist yet.
        photos: In its train list.
    """

    def __init__(self, work_dir: Path, photos: int) -> None:
        self._work_dir, self._photos = work_dir, photos
        self._start, self._lines, self._seen = time.perf_counter(), [], 0

    def look(self) -> None:
        """Take in what has been written since the last time."""
        log = next(self._work_dir.glob("*/vis_data/scalars.json"), None)
        if log is None:
            return
        seconds = time.perf_counter() - self._start
        with log.open(encoding="utf-8") as file:
            file.seek(self._seen)
            while (line := file.readline()).endswith("\n"):
                self._seen = file.tell()
                self._lines.append((seconds, json.loads(line)))

    def read(self) -> dict:
        """The ``epochs`` so far, as the peers print them."""
        epochs = []
        training = [line for _, line in self._lines if "loss" in line and "epoch" in line]
        for seconds, line in self._lines:
            if "accuracy/top1" in line:
                epoch = line["step"]
                rate = self._rate([entry for entry in training if entry["epoch"] == epoch], training)
                found = {"seconds": seconds, "top1": line["accuracy/top1"], "images": epoch * self._photos}
                epochs.append({"epoch": epoch, **found, "images_per_second": rate})
        return {"epochs": epochs, "versions": None, "gpu": None}

    def _rate(self, own: list[dict], training: list[dict]) -> float | None:
        """Images/s of one epoch's lines, without the first line of the run where there are others."""
        before = max((entry["iter"] for entry in training if own and entry["epoch"] < own[0]["epoch"]), default=0)
        if not own or "time" not in own[0] or own[-1]["iter"] == before:
            return None
        images = self._photos / (own[-1]["iter"] - before)  # of an iteration
        if before == 0 and len(own) > 1:
            before, own = own[0]["iter"], own[1:]
        starts = [before, *(entry["iter"] for entry in own[:-1])]
        seconds = sum(entry["time"] * (entry["iter"] - start) for start, entry in zip(starts, own, strict=True))
        return images * (own[-1]["iter"] - before) / seconds


def machine() -> dict:
    """Where the figures come from."""
    facts = dict(system=platform.platform(), python=platform.python_version(), cores=os.cpu_count())
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts["processor"] = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
        facts["instructions"] = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    facts["threads"] = os.environ.get("OMP_NUM_THREADS")
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {**facts, "commit": git.stdout.strip() or None}


def heading(args, results: dict) -> str:
    """What a table's figures are of."""
    facts, settings = results["machine"], results["settings"]
    versions: dict[str, str] = {}
    for done in results["runs"]:
        versions |= done["versions"] or {}
    gpu = next((done["gpu"] for done in results["runs"] if done["gpu"]), "no GPU")
    lines = [
        f"{args.network}, {settings['train_photos']} photos to train and {settings['val_photos']} to validate, peers: "
        f"{args.epochs} epochs, batches of {args.batch_size}, {args.size} px, validation {args.val_resize} → "
        f"{args.val_size} px, {args.workers} loader processes, amp {args.amp}.",
        f"{facts.get('processor', facts['system'])}, {facts['cores']} cores, {facts.get('memory_gb', '?')} GB, {gpu}; "
        f"commit {facts['commit']}; {', '.join(f'{name} {number}' for name, number in versions.items())}.",
        f"Medians of n rounds (least–greatest), a seed each from {args.seed} on.",
    ]
    return "\n".join(lines) + "\n\n"


def _plain(value):
    """For JSON: paths as text, infinite times as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, summary.Spread):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run(main)
