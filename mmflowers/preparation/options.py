"""The options of the preparation, checked when they are created."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from mmflowers.preparation.decoding import MIN_SIDE
from mmflowers.preparation.labels import NO_TABLE, LabelOptions
from mmflowers.preparation.zip_names import known_encoding
from mmflowers.utils.errors import Problem, failing, raise_all

VAL_RATIO, TEST_RATIO = "0.2", "0"
NO_EFFECT = "has no effect on a given split"
DUPLICATES, LINKS = ("drop", "keep"), ("copy", "hardlink", "symlink")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The options of ``prepare``, named as those of the command.

    Attributes:
        out: The dataset folder; an older dataset of ours is replaced.
        source, sha256, split, split_lists, layout, follow_links, zip_encoding: See ``open_source``.
        labels: The table with the classes of the photos; "none" to use the folders only.
        image_column, label_column, split_column: Columns of that table, by name or by number from 1;
            split_column "none": the table says no split.
        rendered: Instead of a source: the number of flowers to render per class.
        rendered_seed: Random seed of the rendering.
        duplicates: See ``duplicates.resolve``.
        val_ratio: Share of the photos of each class for validation, exact as written; the default is 0.2. If a given
            split has no val, the share of its training photos.
        test_ratio: Share for a test split; the default is none.
        seed: Random seed of the split.
        resize: Short side in pixels that larger photos are scaled down to.
        link: How photos that aren't changed get into the folder.
        workers: Number of processes; the default is one per core.
        force: Rebuild the folder even if it is up to date, and replace a folder that isn't a dataset.
        dry_run: Only find out what would be done.

    Raises:
        InputError: With every option that is wrong.
    """

    out: str | Path
    source: str | Path | None = None
    sha256: str | None = None
    rendered: int | None = None
    rendered_seed: int = 0
    split: Literal["keep", "redo"] | None = None
    split_lists: str | Path | None = None
    layout: Literal["classes", "splits"] | None = None
    follow_links: bool = False
    zip_encoding: str | None = None
    labels: str | Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    duplicates: Literal["drop", "keep"] = "drop"
    val_ratio: str | float | None = None
    test_ratio: str | float | None = None
    seed: int = 0
    resize: int | None = None
    link: Literal["copy", "hardlink", "symlink"] = "copy"
    workers: int | None = None
    force: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        checks: list[tuple[object, str, str]] = []
        for flag, value in (("--val-ratio", self.val_ratio), ("--test-ratio", self.test_ratio)):
            if value is not None:
                is_share = _is_share(value, may_be_zero=flag == "--test-ratio")
                checks.append((not is_share, f"{flag} {value} is not between 0 and 1", "give a share such as 0.2"))
                may_draw = flag == "--val-ratio" and self.split_lists is None  # a given split may have no val
                checks.append((self.has_given_split and not may_draw, f"{flag} {NO_EFFECT}", "remove it"))
        for flag, choice, choices in (("--duplicates", self.duplicates, DUPLICATES), ("--link", self.link, LINKS)):
            checks.append((choice not in choices, f"{flag} {choice} is unknown", f"one of {', '.join(choices)}"))
        if self.zip_encoding is not None:
            unknown = not known_encoding(self.zip_encoding)
            hint = "give one that Python knows, such as gbk, shift_jis, euc_kr, cp437 or cp850"
            checks.append((unknown, f"--zip-encoding {self.zip_encoding} is no encoding of text", hint))
        minima = (("--resize", self.resize, MIN_SIDE), ("--rendered", self.rendered, 1), ("--workers", self.workers, 1))
        for flag, number, least in minima:
            is_small = number is not None and number < least
            checks.append((is_small, f"{flag} {number} is too small", f"give a number from {least}"))
        if self.rendered is not None:
            of_source = ("source", "sha256", "layout", "follow_links", "zip_encoding", "split", "split_lists")
            names = (*of_source, "labels", "image_column", "label_column", "split_column")
            given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) not in (None, False)]
            checks.append((given, "--rendered replaces the source", f"remove {' and '.join(given)}"))
            is_symlink = self.link == "symlink"
            checks.append((is_symlink, "--link symlink needs photos that stay where they are", "remove it"))
        has_columns = any(value is not None for value in self.label_options[1:])
        is_contradiction = str(self.labels) == NO_TABLE and has_columns
        checks.append((is_contradiction, f"--labels {NO_TABLE} has no columns", "name the table with --labels FILE"))
        problems = failing(checks)
        if not problems and self.shares and self.shares["train"] <= 0:
            problems = [Problem("--val-ratio and --test-ratio leave nothing to train on", "their sum must be below 1")]
        raise_all(problems)

    @property
    def label_options(self) -> LabelOptions:
        """The options about the table of labels."""
        return LabelOptions(self.labels, self.image_column, self.label_column, self.split_column)

    @property
    def has_given_split(self) -> bool:
        """Whether the source or lists say which photo is in which split."""
        return self.split == "keep" or self.split_lists is not None

    @property
    def shares(self) -> dict[str, Fraction] | None:
        """The share of each split, exactly; None if the split is given."""
        if self.has_given_split:
            return None
        val = self.val_share
        test = Fraction(str(TEST_RATIO if self.test_ratio is None else self.test_ratio))
        return {"train": 1 - val - test, "val": val, "test": test}

    @property
    def val_share(self) -> Fraction:
        """The share of val wherever it is drawn, exactly as the text says: 0.1 is a tenth."""
        return Fraction(str(VAL_RATIO if self.val_ratio is None else self.val_ratio))

    def as_json(self) -> dict[str, Any]:
        """What the dataset depends on besides its source."""
        shares = self.shares
        return {
            "duplicates": self.duplicates,
            "val_ratio": None if shares is None and self.val_ratio is None else float(self.val_share),
            "test_ratio": None if shares is None else float(shares["test"]),
            "seed": self.seed,
            "resize": self.resize,
            "link": self.link,
        }


def _is_share(value: str | float, *, may_be_zero: bool) -> bool:
    try:
        share = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        return False
    return 0 <= share < 1 and (may_be_zero or share > 0)
