"""Draw the output of a config's training pipeline as a picture: the pixels that the network gets.

examples:
  python tools/browse.py configs/resnet50_flowers.py
  python tools/browse.py configs/resnet18_flowers.py --data my_dataset --number 12 --views 4 --out views.png
  python tools/browse.py configs/resnet18_flowers.py --cfg-options train_dataloader.dataset.pipeline.4.hue=0.5

Each row shows one photo: the original, the output of the test pipeline, and the augmented views that the first epochs
of a training with that seed get.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from mmflowers.cli.parser import Parser, natural, positive
from mmflowers.utils.terminal import importing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument("config", help="config file, or the name of a shipped config")
    parser.add_argument("--data", metavar="DIR", help="dataset folder (default: the config's)")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="train",
        help="the split to choose photos from (default: train)",
    )
    parser.add_argument("--number", type=positive, default=8, metavar="N", help="number of photos (default: 8)")
    parser.add_argument(
        "--views", type=positive, default=6, metavar="N", help="augmented views of each photo (default: 6)"
    )
    parser.add_argument(
        "--seed",
        type=natural,
        metavar="N",
        help="random seed of the choice of photos and of augmentation (default: the config's)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="output file, a .png (default: work_dirs/browse_<config>.png)"
    )
    parser.add_cfg_options()
    args = parser.parse_args(argv)
    out = args.out or Path("work_dirs", f"browse_{Path(args.config).stem}.png")
    if out.suffix.lower() != ".png":
        parser.error(f"--out {out} doesn't end in .png")

    with importing():
        from mmflowers.engine.browsing import browse
        from mmflowers.utils.files import explained, write_bytes

    sheet = browse(
        args.config,
        data=args.data,
        split=args.split,
        number=args.number,
        views=args.views,
        seed=args.seed,
        cfg_options=args.cfg_options,
    )
    png = io.BytesIO()
    sheet.save(png, "PNG")
    with explained(out.parent, elsewhere="choose another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, png.getvalue(), elsewhere="choose another --out")
    print(f"picture: {out} ({sheet.width} × {sheet.height} px)")
