"""Prepare a dataset folder: check every photo, remove duplicates, split into train and val.

examples:
  python tools/prepare_flowers.py                          # TensorFlow's public flower photos, downloaded once
  python tools/prepare_flowers.py --rendered 200           # synthetic flowers, no download
  python tools/prepare_flowers.py --source my_photos       # a folder of class folders, or an archive of one
  python tools/prepare_flowers.py --source photos --labels labels.csv --image-column id --label-column species
  python tools/prepare_flowers.py --source photos --split-lists lists --duplicates keep
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmflowers.cli.parser import Once, Parser

# NumPy's OpenBLAS starts one busy-waiting thread per core for large matrices. The preparation has none.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    source = parser.add_argument_group("photos")
    source.add_argument(
        "--source",
        action=Once,
        metavar="PATH|URL",
        help="folder of class folders, an archive of one, or the URL of an archive",
    )
    source.add_argument("--sha256", metavar="HEX", help="expected sha256 of the archive; required for a URL")
    source.add_argument(
        "--layout",
        choices=("classes", "splits"),
        help="what folders called train, test … are, if that isn't clear: classes, or splits with class folders",
    )
    source.add_argument(
        "--follow-links", action="store_true", help="read the files and folders outside the source that links point to"
    )
    source.add_argument(
        "--zip-encoding", metavar="NAME", help="encoding of the file names in a zip that doesn't say it, such as gbk"
    )
    source.add_argument("--rendered", type=int, metavar="N", help="render N synthetic flowers per class instead")
    source.add_argument(
        "--rendered-seed", type=int, default=0, metavar="N", help="random seed of the rendering (default: 0)"
    )
    labels = parser.add_argument_group("table of labels")
    labels.add_argument(
        "--labels",
        metavar="FILE",
        help="table of the photos' classes (CSV, JSON, Parquet …); none: use the folders",
    )
    labels.add_argument("--image-column", metavar="NAME", help="its column of paths, names or ids of photos")
    labels.add_argument("--label-column", metavar="NAME", help="its column of classes")
    labels.add_argument("--split-column", metavar="NAME", help="its column of train, val and test, or none")
    split = parser.add_argument_group("split")
    split.add_argument(
        "--split", choices=("keep", "redo"), help="keep the split that the source already has, or draw a new one"
    )
    split.add_argument("--split-lists", metavar="DIR", help="read the split from train.txt and val.txt in DIR")
    split.add_argument("--val-ratio", metavar="X", help="share of each class for validation (default: 0.2)")
    split.add_argument("--test-ratio", metavar="X", help="share of each class for a test split (default: none)")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the split (default: 0)")
    photos = parser.add_argument_group("processing")
    photos.add_argument(
        "--duplicates",
        choices=("drop", "keep"),
        default="drop",
        help="drop duplicates (default; of duplicates in different classes none is kept), or keep all photos",
    )
    photos.add_argument("--resize", type=int, metavar="N", help="resize larger photos to a short side of N pixels")
    photos.add_argument(
        "--link",
        choices=("copy", "hardlink", "symlink"),
        default="copy",
        help="copy the photos (default), or link to those that aren't changed",
    )
    parser.add_argument(
        "--out", default="flower_dataset", metavar="DIR", help="dataset folder (default: flower_dataset)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument(
        "--force", action="store_true", help="rebuild the dataset folder; replace even a folder that is not a dataset"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done without writing anything")
    args = parser.parse_args(argv)

    from mmflowers.preparation.options import PrepareOptions
    from mmflowers.preparation.prepare import prepare

    print(prepare(PrepareOptions(**vars(args))))
