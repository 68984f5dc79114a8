# PYTHON_ARGCOMPLETE_OK
"""Export a trained run for other programs, each file checked on the run's photos: ONNX, TorchScript, a slim checkpoint.

examples:
  python tools/export.py                                   the last run in work_dirs, all formats, into its export/
  python tools/export.py --run work_dirs/mine --formats onnx slim --out exported
  python tools/export.py --run work_dirs/mine --preprocessing    ONNX that takes pixels as Pillow and OpenCV hold them
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from mmflowers.commands import Parser, existing_folder, importing, run

FORMATS = ("onnx", "onnx-fp16", "torchscript", "slim")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        metavar="WORK_DIR",
        help="the run to export, or a checkpoint beside its config (default: the last in work_dirs)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: export in the work dir)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="(default: all of them)")
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="ONNX and TorchScript normalise: they take uint8 RGB of shape (n, height, width, 3)",
    )
    parser.add_argument(
        "--data", type=existing_folder, metavar="DIR", help="dataset folder to check on (default: the run's)"
    )
    parser.add_argument(
        "--license", metavar="ID", help="of the network, for its card, as Hugging Face names it: apache-2.0, …"
    )
    args = parser.parse_args()

    with contextlib.redirect_stdout(sys.stderr):  # mmengine tells stdout of timm's networks
        with importing():
            from mmflowers.deploy.export import export
            from mmflowers.engine.testing import last_run
            from mmflowers.errors import InputError

        try:
            work_dir = args.run or last_run(Path("work_dirs"))
        except InputError as error:
            hint = "python tools/train.py CONFIG trains one, --run names one elsewhere"
            raise InputError(error.problems[0].what, hint) from error
        done = export(
            work_dir,
            args.out,
            chosen=list(dict.fromkeys(args.formats)),
            preprocessing=args.preprocessing,
            data=args.data,
            licence=args.license,
        )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(done)
    print(f"exported: {done.out}")


if __name__ == "__main__":
    run(main)
