# PYTHON_ARGCOMPLETE_OK
"""Measure what the documents claim.

examples:
  python tools/benchmark.py prepare --source photos        # rate against a bare loop that reads, hashes and decodes
  python tools/benchmark.py prepare --memory 100000        # peak memory with that many small photos
  python tools/benchmark.py predict --run work_dirs/mine --source my_dataset   # tools/predict.py against tools/test.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mmflowers.commands import Parser, existing_folder, run

PREPARE = (sys.executable, str(Path(__file__).with_name("prepare_flowers.py")))


def main() -> None:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="the preparation of photos: speed, memory")
    what = prepare.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--source", type=existing_folder, metavar="DIR", help="a folder of class folders to measure the speed on"
    )
    what.add_argument("--memory", type=int, metavar="N", help="measure the memory instead, on N small rendered photos")
    prepare.add_argument("--workers", type=int, default=2, metavar="N", help="processes on either side (default: 2)")
    prepare.add_argument("--repeats", type=int, default=5, metavar="N", help="of the measurement (default: 5)")
    prepare.add_argument("--json", action="store_true", help="print the figures as JSON")
    predict = commands.add_parser("predict", help="prediction against the test of the same photos: speed")
    predict.add_argument("--run", type=existing_folder, required=True, metavar="WORK_DIR", help="a trained run")
    predict.add_argument(
        "--source", type=existing_folder, required=True, metavar="DIR", help="a dataset folder with the run's classes"
    )
    predict.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode (default: 2)")
    predict.add_argument("--repeats", type=int, default=5, metavar="N", help="of the measurement (default: 5)")
    predict.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    {"prepare": _prepare, "predict": _predict}[args.command](args)


def _prepare(args) -> None:
    from mmflowers.preparation.benchmark import measure_memory, measure_speed

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
    from mmflowers.deploy.benchmark import measure_prediction

    got = measure_prediction(args.run, args.source, workers=args.workers, repeats=args.repeats)
    lines = [f"{got['photos']:,} photos, {got['workers']} workers, {got['cores']} cores, n = {got['repeats']} rounds"]
    for side, rate in got["median_photos_per_second"].items():
        ratio = "; {:.2f} times the test's ({:.2f} to {:.2f})".format(*got["ratio"][side]) if side != "test" else ""
        lines.append(f"{side:<14} {rate:6.1f} photos/s (median, from start to exit{ratio})")
    print(json.dumps(got, indent=2) if args.json else "\n".join(lines))


if __name__ == "__main__":
    run(main)
