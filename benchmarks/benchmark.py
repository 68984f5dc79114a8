# PYTHON_ARGCOMPLETE_OK
"""Reproduce the measurements in the documentation: speed, memory and time to accuracy.

examples:
  python benchmarks/benchmark.py prepare --source photos     # files/s, against a loop that only reads, hashes, decodes
  python benchmarks/benchmark.py prepare --memory 100000     # peak memory with that many small photos
  python benchmarks/benchmark.py predict --run work_dirs/mine --source my_dataset     # predict.py against test.py
  python benchmarks/benchmark.py train configs/resnet50_flowers.py "configs/resnet50_flowers.py --amp"     # images/s
  python benchmarks/benchmark.py train configs/efficientnet_lite0_flowers.py --to-accuracy 95 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mmflowers.cli.parser import Parser, existing_folder
from mmflowers.cli.process import run

TRAINING = """\
Compare trainings in rounds. Every measurement is a new process, and every other round runs in reverse order.

examples:
  python benchmarks/benchmark.py train configs/resnet50_flowers.py configs/resnet18_flowers.py --json rates.json
  python benchmarks/benchmark.py train configs/resnet50_flowers.py "configs/resnet50_flowers.py --amp" --iterations 10
  python benchmarks/benchmark.py train configs/efficientnet_lite0_flowers.py --to-accuracy 95 --repeats 5
"""
TOOLS = Path(__file__).parents[1] / "tools"
PREPARE = (sys.executable, str(TOOLS / "prepare_flowers.py"))
TRAIN = (sys.executable, str(TOOLS / "train.py"))
MEASURE = (sys.executable, __file__, "measure")


def main() -> None:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="measure speed or memory of the preparation")
    what = prepare.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--source", type=existing_folder, metavar="DIR", help="measure the speed on this folder of class folders"
    )
    what.add_argument("--memory", type=int, metavar="N", help="measure the memory on N small synthetic photos instead")
    prepare.add_argument("--workers", type=int, default=2, metavar="N", help="processes on both sides (default: 2)")
    prepare.add_argument("--repeats", type=int, default=5, metavar="N", help="of the measurement (default: 5)")
    prepare.add_argument("--json", action="store_true", help="print the figures as JSON")
    predict = commands.add_parser("predict", help="compare the speed of predict.py and test.py on the same photos")
    predict.add_argument("--run", type=existing_folder, required=True, metavar="WORK_DIR", help="a trained run")
    predict.add_argument(
        "--source", type=existing_folder, required=True, metavar="DIR", help="a dataset folder with the run's classes"
    )
    predict.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that decode photos (default: 2)"
    )
    predict.add_argument("--repeats", type=int, default=5, metavar="N", help="of the measurement (default: 5)")
    predict.add_argument("--json", action="store_true", help="print the figures as JSON")
    train = commands.add_parser(
        "train",
        description=TRAINING,
        help="compare trainings: images/s, data-loading time, memory, time to an accuracy",
    )
    train.add_argument(
        "trainings",
        nargs="+",
        metavar="CONFIG",
        help='arguments of tools/train.py: a config, or a config and options in quotes: "CONFIG --amp"',
    )
    train.add_argument(
        "--to-accuracy",
        type=float,
        metavar="X",
        help="measure the time that whole trainings take to a val top-1 of X %%",
    )
    train.add_argument("--data", metavar="DIR", help="dataset folder (default: the configs')")
    train.add_argument(
        "--weights",
        metavar="FILE|none",
        help="same as in tools/train.py (default: none, as they don't change the speed; --to-accuracy: the configs')",
    )
    train.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of all configs")
    train.add_argument("--repeats", type=_positive, default=3, metavar="N", help="number of rounds (default: 3)")
    train.add_argument(
        "--iterations", type=_positive, metavar="N", help="timed iterations per round (default: 20; on a GPU 200)"
    )
    train.add_argument(
        "--warmup", type=_positive, metavar="N", help="untimed iterations before them (default: 3; on a GPU 30)"
    )
    train.add_argument("--threads", type=_positive, metavar="N", help="threads of each process (default: torch's)")
    train.add_argument(
        "--json", type=_new_file, metavar="FILE", help="write machine, versions and all rounds to this file"
    )
    commands.add_parser("measure").add_argument("task", help="JSON task, passed by the train command")
    args = parser.parse_args()
    {"prepare": _prepare, "predict": _predict, "train": _train, "measure": _measure}[args.command](args)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _new_file(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a folder")
    return path


def _prepare(args) -> None:
    from ours.preparing import measure_memory, measure_speed

    if args.memory is not None:
        got = measure_memory(PREPARE, args.memory, workers=args.workers)
        text = (
            f"{got['photos']:,} photos, {got['workers']} workers: peak {got['peak_rss_mb']:.0f} MB resident in all "
            f"processes ({got['peak_pss_mb']:.0f} MB with shared pages counted once), {got['seconds']:.0f} s"
        )
    else:
        got = measure_speed(PREPARE, args.source, workers=args.workers, repeats=args.repeats)
        text = (
            f"{got['files']:,} files, {got['workers']} workers, {got['cores']} cores, n = {got['repeats']} pairs\n"
            f"bare loop      {got['bare_files_per_second']:7,.0f} files/s (median)\n"
            f"whole command  {got['command_files_per_second']:7,.0f} files/s (median)\n"
            f"ratio          {got['ratio']:7.2f} (median; {got['ratio_min']:.2f} to {got['ratio_max']:.2f})"
        )
    print(json.dumps(got, indent=2) if args.json else text)


def _predict(args) -> None:
    from ours.predicting import measure_prediction

    got = measure_prediction(args.run, args.source, workers=args.workers, repeats=args.repeats)
    lines = [f"{got['photos']:,} photos, {got['workers']} workers, {got['cores']} cores, n = {got['repeats']} rounds"]
    for side, rate in got["median_photos_per_second"].items():
        ratio = "; {:.2f} times the test's ({:.2f} to {:.2f})".format(*got["ratio"][side]) if side != "test" else ""
        lines.append(f"{side:<14} {rate:6.1f} photos/s (median, from start to exit{ratio})")
    print(json.dumps(got, indent=2) if args.json else "\n".join(lines))


def _train(args) -> None:
    from ours import rounds

    from mmflowers.utils.errors import InputError
    from mmflowers.utils.files import write_text

    if args.to_accuracy is not None and (args.iterations or args.warmup):
        raise InputError("--to-accuracy times whole trainings", "remove --iterations and --warmup")
    weights = args.weights or (None if args.to_accuracy is not None else "none")
    options = [f"--cfg-options={option}" for option in args.cfg_options]
    options += ["--data", args.data] if args.data else []
    options += ["--weights", weights] if weights else []
    asked = dict(options=options, repeats=args.repeats, threads=args.threads)
    if args.to_accuracy is not None:
        got = rounds.compare_times(TRAIN, args.trainings, args.to_accuracy, **asked)
    else:
        rates = dict(warmup=args.warmup, iterations=args.iterations)
        got = rounds.compare_rates(MEASURE, args.trainings, **asked, **rates)
    if args.json:
        write_text(args.json, json.dumps(got, indent=2) + "\n", elsewhere="choose another --json")
    print(rounds.table(got))
    if failed := rounds.failures(got):
        raise InputError(problems=failed)


def _measure(args) -> None:
    from ours.rates import measure_rates

    from mmflowers.cli import train

    task = json.loads(args.task)
    parser = train.arguments()
    parser.prog = "train.py"
    config = train.configured(parser.parse_args(task["training"]))
    got = measure_rates(config, started=task["started"], warmup=task["warmup"], iterations=task["iterations"])
    Path(task["out"]).write_text(json.dumps(got), encoding="utf-8")


if __name__ == "__main__":
    run(main)
