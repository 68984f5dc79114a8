"""Test a trained classifier: top-1 with 95 % interval, precision and recall per class, a file of all predictions.

examples:
  python tools/test.py                                     the best checkpoint of the last run, on val
  python tools/test.py --split train
  python tools/test.py --against work_dirs/another         is the difference significant?
  python tools/test.py work_dirs/mine/best.pth --tta --against work_dirs/mine    does TTA help?
  python tools/test.py configs/resnet50_flowers.py work_dirs/resnet50_flowers/best.pth --data my_dataset
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mmflowers.cli.parser import Parser
from mmflowers.utils.terminal import importing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument("config", nargs="?", help="config file (default: the one in the checkpoint's work dir)")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint (default: best.pth of the last run, or its last.pth if it had no validation)",
    )
    parser.add_argument("--data", metavar="DIR", help="dataset folder (default: the config's)")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="val", help="the split to test on (default: val)"
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation: mean scores of a photo and its mirror image"
    )
    parser.add_argument("--amp", action="store_true", help="half precision, faster on CPUs and GPUs that support it")
    parser.add_argument(
        "--work-dir", metavar="DIR", help="output folder of the predictions (default: next to the checkpoint)"
    )
    parser.add_argument(
        "--against",
        metavar="FILE|DIR",
        help="compare photo by photo with this file of predictions, or with those in a work dir",
    )
    parser.add_argument("--skip-checks", action="store_true", help="skip the checks of tools/check.py")
    parser.add_launcher()
    parser.add_cfg_options()
    args = parser.parse_args(argv)
    if args.config and not args.checkpoint and args.config.endswith((".pth", ".safetensors")):
        args.config, args.checkpoint = None, args.config  # only a checkpoint: its config is in the same folder
    elif args.config and not args.checkpoint:
        parser.error("with a config a checkpoint is needed too")

    with importing():
        from mmflowers.checks.findings import report
        from mmflowers.checks.run import check_testing
        from mmflowers.engine.testing import test
        from mmflowers.evaluation.predictions import format_per_class
        from mmflowers.evaluation.statistics import compare, format_part, format_top1_interval, predictions_file
        from mmflowers.evaluation.tested import read_tested, require_same_photos
        from mmflowers.utils.files import REFUSALS, explained

    # Read before anything is tested: the test may be the one that writes this file.
    against = predictions_file(args.against, args.split) if args.against else None
    other = read_tested(against, against.parent) if against else None

    def check(config, problems) -> None:
        found = check_testing(config, problems, split=args.split, tta=args.tta, options=args.cfg_options)
        report(found, config.work_dir)

    folder = args.work_dir or Path(args.checkpoint or "work_dirs").parent
    with explained(folder, elsewhere="choose another --work-dir", only=REFUSALS):
        tested = test(
            args.config,
            args.checkpoint,
            data=args.data,
            split=args.split,
            tta=args.tta,
            amp=args.amp,
            work_dir=args.work_dir,
            launcher=args.launcher,
            cfg_options=args.cfg_options,
            before=None if args.skip_checks else check,
        )
    if tested is None:  # not the main process
        return
    predictions, path, coverage = tested
    print(format_per_class(predictions))
    print(f"predictions: {path}")
    if coverage.is_whole:
        print(format_top1_interval(predictions.correct, len(predictions.images)))
    else:
        print(format_part(predictions.correct, coverage.counted, coverage.listed, args.split))
    if against is not None and other is not None:
        require_same_photos(against, read_tested(path, path.parent).photos_sha256, other.photos_sha256)
        for note in other.notes:
            print(f"warning: {against} is {note}", file=sys.stderr)
        print(f"against {against}: {compare(predictions, other.predictions)}")
