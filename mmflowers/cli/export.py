"""Export a trained run as ONNX, TorchScript or a slim checkpoint, and verify each file on the run's photos.

examples:
  python tools/export.py                                   the last run in work_dirs, all formats, into its export/
  python tools/export.py --run work_dirs/mine --formats onnx slim --out exported
  python tools/export.py --run work_dirs/mine --preprocessing    normalisation included: takes uint8 RGB images
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mmflowers.cli.parser import Parser, existing_folder
from mmflowers.utils.terminal import importing

FORMATS = ("onnx", "onnx-fp16", "torchscript", "slim")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        metavar="WORK_DIR",
        help="work dir of the run, or a checkpoint next to its config (default: the last run in work_dirs)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: export in the work dir)")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=FORMATS, help="formats to export (default: all)"
    )
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="include normalisation in ONNX and TorchScript: input is uint8 RGB of shape (n, height, width, 3)",
    )
    parser.add_argument(
        "--data", type=existing_folder, metavar="DIR", help="dataset folder to verify the files on (default: the run's)"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="license of the network for the model card, as a Hugging Face identifier: apache-2.0, …",
    )
    args = parser.parse_args(argv)

    with contextlib.redirect_stdout(sys.stderr):  # mmengine prints on stdout about timm's networks
        with importing():
            from mmflowers.engine.testing import last_run
            from mmflowers.export.export import export

        work_dir = args.run or last_run(Path("work_dirs"), "choose another one with --run")
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
