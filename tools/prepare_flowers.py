# PYTHON_ARGCOMPLETE_OK
"""Make a dataset folder of photos: every file checked, copies found, split into train and val.

examples:
  python tools/prepare_flowers.py                          # TensorFlow's public flower photos, downloaded once
  python tools/prepare_flowers.py --rendered 200           # flowers drawn here, no download
  python tools/prepare_flowers.py --source my_photos       # a folder of class folders, or an archive of one
  python tools/prepare_flowers.py --source photos --split-lists lists --duplicates keep
"""

from __future__ import annotations

import os

from mmflowers.commands import Parser, run

# NumPy's OpenBLAS starts a thread a core that spins for a while and then waits for large matrices; there are none here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> None:
    parser = Parser(description=__doc__)
    source = parser.add_argument_group("photos")
    source.add_argument("--source", metavar="PATH|URL", help="folder of class folders, archive of one, or its address")
    source.add_argument("--sha256", metavar="HEX", help="what the archive must have; needed for an address")
    source.add_argument("--rendered", type=int, metavar="N", help="instead: render N flowers a class")
    source.add_argument("--rendered-seed", type=int, default=0, metavar="N", help="of the rendering (default: 0)")
    split = parser.add_argument_group("split")
    split.add_argument("--split", choices=("keep", "redo"), help="what to do about the split a source already has")
    split.add_argument("--split-lists", metavar="DIR", help="take the split from train.txt and val.txt in DIR")
    split.add_argument("--val-ratio", metavar="X", help="share of each class for validation (default: 0.2)")
    split.add_argument("--test-ratio", metavar="X", help="share of each class for a test split (default: none)")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="of the split (default: 0)")
    photos = parser.add_argument_group("what becomes of them")
    photos.add_argument(
        "--duplicates",
        choices=("drop", "keep"),
        default="drop",
        help="drop identical copies, those in different classes altogether (default), or keep all photos",
    )
    photos.add_argument("--resize", type=int, metavar="N", help="scale larger photos down to a short side of N pixels")
    photos.add_argument(
        "--link",
        choices=("copy", "hardlink", "symlink"),
        default="copy",
        help="copy the photos (default), or link to those that can stay as they are",
    )
    parser.add_argument(
        "--out", default="flower_dataset", metavar="DIR", help="dataset folder (default: flower_dataset)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--force", action="store_true", help="make it anew; replace a folder that is no dataset")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    args = parser.parse_args()

    from mmflowers.preparation.prepare import prepare

    print(prepare(**vars(args)))


if __name__ == "__main__":
    run(main)
