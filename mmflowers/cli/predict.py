"""Predict the classes of photos with a trained run. Each photo gets a line or a row, unreadable files too.

examples:
  python tools/predict.py photo.jpg                                  with the last run in work_dirs
  python tools/predict.py photos/ more.zip 'x/**/*.png' --run work_dirs/mine --out predictions.csv
  python tools/predict.py https://example.org/rose.jpg --top-k 1
  find photos -name '*.jpg' | python tools/predict.py - --out predictions.jsonl
  python tools/predict.py photos/ --sort-into by_class --link --cam overlays
  python tools/predict.py --camera
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mmflowers.cli.parser import Parser, natural, positive
from mmflowers.utils.terminal import importing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="files, folders (recursive), quoted globs, archives or http(s) URLs; - reads a list from stdin",
    )
    parser.add_argument(
        "--run",
        metavar="WORK_DIR",
        help="work dir of the run, or a checkpoint next to its config (default: the last run in work_dirs)",
    )
    parser.add_argument(
        "--top-k", type=positive, default=3, metavar="K", help="most likely classes per photo (default: 3)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the predictions to this .csv, .jsonl or .parquet file"
    )
    parser.add_argument("--sort-into", type=Path, metavar="DIR", help="copy each photo into DIR/<predicted class>")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--move", dest="how", action="store_const", const="move", help="with --sort-into: move instead")
    how.add_argument("--link", dest="how", action="store_const", const="link", help="with --sort-into: link instead")
    parser.add_argument("--cam", type=Path, metavar="DIR", help="write Grad-CAM overlays into DIR")
    parser.add_argument(
        "--camera",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="predict the images of camera N (default: 0) until Ctrl-C",
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="photos per batch (default: 32)")
    parser.add_argument(
        "--workers", type=natural, default=2, metavar="N", help="processes that decode photos (default: 2)"
    )
    parser.add_argument("--amp", action="store_true", help="bfloat16, faster on CPUs and GPUs that support it")
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation: mean scores of a photo and its mirror image"
    )
    args = parser.parse_args(argv)
    if bool(args.images) == (args.camera is not None):
        parser.error("give either images or --camera")
    if args.how and not args.sort_into:
        parser.error(f"--{args.how} needs --sort-into")
    if args.camera is not None and args.sort_into:
        parser.error("--camera and --sort-into exclude each other: there is no file to sort")

    from mmflowers.inference.inputs import require_inputs
    from mmflowers.inference.output import check_output

    if args.images:
        require_inputs(args.images)
    if args.out:
        check_output(args.out)

    with contextlib.redirect_stdout(sys.stderr):  # rows go to stdout, where OneDL's mmpretrain prints on import
        with importing():
            from mmflowers.engine.testing import last_run
            from mmflowers.inference.classifier import FlowerClassifier
            from mmflowers.inference.predicting import predict_all

        work_dir = args.run or last_run(Path("work_dirs"), "choose another one with --run")
        classifier = FlowerClassifier.from_run(work_dir, amp=args.amp, tta=args.tta)
    predict_all(
        classifier,
        args.images,
        camera=args.camera,
        top_k=args.top_k,
        out=args.out,
        sort_into=args.sort_into,
        how=args.how or "copy",
        cam=args.cam,
        batch_size=args.batch_size,
        workers=args.workers,
    )
