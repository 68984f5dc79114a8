"""Write a self-contained HTML report of a tested run: its dataset, curves, mistakes and calibration.

examples:
  python tools/report.py                                   the last run in work_dirs
  python tools/report.py work_dirs/mine                    → work_dirs/mine/report/report.html
  python tools/report.py work_dirs/mine work_dirs/other    side by side: is the difference significant?
  python tools/report.py work_dirs/mine --out mine.html --cam
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmflowers.cli.parser import Parser, existing_folder
from mmflowers.utils.terminal import importing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "work_dirs",
        nargs="*",
        type=existing_folder,
        metavar="work_dir",
        help="work dir of a tested run (default: the last run in work_dirs); others are compared with the first",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="output file (default: report/report.html in the first work dir)"
    )
    parser.add_argument(
        "--data", type=existing_folder, metavar="DIR", help="dataset folder (default: the one it was tested on)"
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="val", help="the split to report on (default: val)"
    )
    parser.add_argument(
        "--cam", action="store_true", help="add Grad-CAM overlays to mistakes and low-confidence correct predictions"
    )
    args = parser.parse_args(argv)

    from mmflowers.evaluation.report import read_report_data
    from mmflowers.visualization.report import write_report

    work_dirs = args.work_dirs
    if not work_dirs:
        with importing():
            from mmflowers.engine.testing import last_run  # imports torch, which is not needed otherwise

        work_dirs = [last_run(Path("work_dirs"))]
    overlay = None
    if args.cam:
        with contextlib.redirect_stdout(sys.stderr):  # mmengine prints on stdout about timm's networks
            with importing():
                from mmflowers.inference.classifier import FlowerClassifier
                from mmflowers.inference.grad_cam import file_overlay

            overlay = partial(file_overlay, FlowerClassifier.from_run(work_dirs[0]))
    report = read_report_data(work_dirs, data=args.data, split=args.split)
    path = write_report(report, args.out, overlay=overlay)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
