"""Drawn edits of a dataset folder and of the loaders that read it, held against an oracle: "counts" of fuzz.py.

The oracle knows which photo each file shows, because it made the files; it reads lists in four lines of its own; and
it lets MMEngine's loaders, without anything of mmflowers in them, say which rows an epoch takes. From these it tells
what a training would learn from and count. Each falsehood must be refused or warned of, a draw without one must give
no finding, and what is accepted is run now and then, to see that the photos that are loaded are those photos.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fuzz import ROOT, Case
from mmcv.transforms import BaseTransform
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset
from PIL import Image

from mmflowers.checks.findings import Finding
from mmflowers.checks.run import check_config, check_testing
from mmflowers.datasets.served import Coverage
from mmflowers.engine.testing import test as run_test
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.registry import DATASETS, TRANSFORMS
from mmflowers.utils.errors import InputError

CLASSES = ("daisy", "rose", "tulip")
DATA, SPARE = Path("flower_dataset"), Path("spare")
EPOCHS = 20  # of shuffled training with drop_last, in which every photo has its turn
RUNS = 0.25  # share of the draws that are run where they are accepted
CONFIG = f"""\
_base_ = {str(ROOT / "configs" / "resnet18_flowers.py")!r}
model = dict(backbone=dict(base_channels=8, stem_channels=8), head=dict(in_channels=64))
train_cfg = dict(max_epochs=1)
param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1.0)
"""
SIDES = {"train": "train", "val": "val", "test": "val"}  # loader -> the list it reads where nothing is edited


@TRANSFORMS.register_module()
class Ledger(BaseTransform):
    """Writes down which photos pass through a pipeline of a run."""

    seen: ClassVar[Counter[tuple[str, str]]] = Counter()

    def __init__(self, side: str) -> None:
        self.side = side

    def transform(self, results: dict) -> dict:
        self.seen[self.side, results["img_path"]] += 1
        return results


@DATASETS.register_module()
class PlainList(BaseDataset):
    """A list as the oracle reads it: whatever it says, nothing refused."""

    def load_data_list(self) -> list[dict]:
        rows = (row.rpartition(" ") for row in rows_of(Path(self.ann_file)))
        return [dict(img_path=str(Path(self.data_root, name)), gt_label=int(label)) for name, _, label in rows]


def rows_of(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def pipeline(side: str) -> list[dict]:
    crop = [dict(type="RandomResizedCrop", scale=64)]
    if side != "train":
        crop = [dict(type="ResizeEdge", scale=64, edge="short"), dict(type="CenterCrop", crop_size=64)]
    return [dict(type="LoadImageFromFile"), *crop, dict(type="Ledger", side=side), dict(type="PackInputs")]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- a draw


class Draw:
    """A dataset folder, the loaders of a config, and what has been done to both.

    Attributes:
        photo: Which photo the bytes with a sha256 show, and its true label.
        true: The photos of each split as prepared.
        prepared: The sha256 of their files.
        places: Where they lay, with that.
        edits: What was done, for a person.
    """

    def __init__(self, pristine: Path, photo: dict[str, tuple[str, int]], rng: random.Random) -> None:
        shutil.rmtree(DATA, ignore_errors=True)
        shutil.rmtree("elsewhere", ignore_errors=True)
        shutil.copytree(pristine, DATA)
        self.rng, self.photo = rng, dict(photo)
        self.splits = [split for split in ("train", "val", "test") if (DATA / f"{split}.txt").exists()]
        self.true = {split: {photo[sha(path)][0] for path in self.paths(split)} for split in self.splits}
        self.prepared = {sha(path) for split in self.splits for path in self.paths(split)}
        self.places = {split: {normal(path): sha(path) for path in self.paths(split)} for split in self.splits}
        self.spare = sorted(SPARE.glob("*/*"))
        rng.shuffle(self.spare)
        self.edits: list[str] = []
        self.fresh = itertools.count()
        self.loaders = {
            side: dict(
                batch_size=8,
                num_workers=0,
                persistent_workers=False,
                sampler=dict(type="DefaultSampler", shuffle=side == "train"),
                dataset=self.dataset(side, split),
            )
            for side, split in SIDES.items()
        }

        self.pristine_config = self.config()

    def dataset(self, side: str, split: str) -> dict:
        return dict(type="FlowersDataset", data_root=str(DATA), ann_file=f"{split}.txt", pipeline=pipeline(side))

    def lines(self, split: str) -> list[str]:
        return rows_of(DATA / f"{split}.txt")

    def paths(self, split: str) -> list[Path]:
        return [DATA / line.rpartition(" ")[0] for line in self.lines(split)]

    def write(self, split: str, lines: list[str]) -> None:
        (DATA / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def take(self, split: str) -> tuple[str, int]:
        """A row of a list, taken off it: path in the folder and label."""
        lines = self.lines(split)
        name, _, label = lines.pop(self.rng.randrange(len(lines))).rpartition(" ")
        self.write(split, lines)
        return name, int(label)

    def look(self, split: str) -> tuple[str, int]:
        name, _, label = self.rng.choice(self.lines(split)).rpartition(" ")
        return name, int(label)

    def add(self, split: str, name: str, label: int) -> None:
        self.write(split, sorted([*self.lines(split), f"{name} {label}"]))

    def new_name(self, split: str, label: int, suffix: str) -> str:
        return f"{split}/{CLASSES[label]}/new{next(self.fresh)}{suffix}"

    def any_list(self) -> str:
        return self.rng.choice(("train", "val"))

    def config(self) -> str:
        loaders = [f"{side}_dataloader = {dict(_delete_=True, **loader)!r}\n" for side, loader in self.loaders.items()]
        return CONFIG + "".join(loaders)


# ------------------------------------------------------------------------------------------- edits of the folder


def drop_row(draw: Draw) -> None:
    split = draw.any_list()
    name, _ = draw.take(split)
    if draw.rng.random() < 0.5:
        (DATA / name).unlink()


def repeat_row(draw: Draw) -> None:
    split = draw.any_list()
    name, label = draw.look(split)
    draw.add(split, name.replace("/", draw.rng.choice(("/", "//", "/./")), 1), label)


def respell_row(draw: Draw) -> None:
    split = draw.any_list()
    name, label = draw.take(split)
    draw.add(split, name.replace("/", draw.rng.choice(("//", "/./")), 1), label)


def move_row(draw: Draw) -> None:
    one, other = draw.rng.sample(("train", "val"), 2)
    draw.add(other, *draw.take(one))
    if draw.rng.random() < 0.5:
        draw.add(one, *draw.take(other))


def move_file(draw: Draw) -> None:
    """From one split to the other, its bytes under a name of that split's; the other way round too for equal counts."""
    ways = [draw.rng.sample(("train", "val"), 2)]
    ways += [ways[0][::-1]] * draw.rng.randrange(2)
    for one, other in ways:
        name, label = draw.take(one)
        target = draw.new_name(other, label, Path(name).suffix)
        (DATA / name).rename(DATA / target)
        draw.add(other, target, label)


def share_row(draw: Draw) -> None:
    one, other = draw.rng.sample(("train", "val"), 2)
    draw.add(other, *draw.look(one))


def relabel(draw: Draw) -> None:
    split = draw.any_list()
    name, label = draw.take(split)
    other = (label + draw.rng.randrange(1, len(CLASSES))) % len(CLASSES)
    target = name
    if draw.rng.random() < 0.7:
        target = draw.new_name(split, other, Path(name).suffix)
        (DATA / name).rename(DATA / target)
    draw.add(split, target, other)


def copy_photo(draw: Draw) -> None:
    """A photo once more: bytes, link or another encoding, to any split and class; sometimes in place of another row."""
    name, label = draw.look(draw.any_list())
    split, source = draw.any_list(), DATA / name
    given = draw.rng.choice((label, label, (label + 1) % len(CLASSES)))
    how = draw.rng.choice(("bytes", "link", "hard link", "png", "jpeg", "smaller"))
    target = draw.new_name(split, given, ".png" if how == "png" else ".jpg")
    path = DATA / target
    if how == "bytes":
        shutil.copy(source, path)
    elif how == "link":
        path.symlink_to(source.resolve())
    elif how == "hard link":
        path.hardlink_to(source)
    else:
        _encode(source, path, how)
        draw.photo.setdefault(sha(path), draw.photo[sha(source)])
    if draw.rng.random() < 0.5:
        others = [row for row in draw.lines(split) if row != f"{name} {label}"]
        row = draw.rng.choice(others)
        draw.write(split, [line for line in draw.lines(split) if line != row])
    draw.add(split, target, given)
    draw.edits.append(f"({how} of {name} as {target})")


def _encode(source: Path, target: Path, how: str) -> None:
    with Image.open(source) as image:
        image = image.convert("RGB")
        if how == "smaller":
            image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
        image.save(target, "PNG" if how == "png" else "JPEG", **({} if how == "png" else {"quality": 80}))


def rename_file(draw: Draw) -> None:
    split = draw.any_list()
    name, label = draw.take(split)
    target = draw.new_name(split, label, Path(name).suffix)
    if draw.rng.random() < 0.3:  # another folder of the same class
        target = target.replace(f"{split}/", f"{split}/more/", 1)
    (DATA / target).parent.mkdir(parents=True, exist_ok=True)
    (DATA / name).rename(DATA / target)
    draw.add(split, target, label)


def link_file(draw: Draw) -> None:
    """The photo lies elsewhere, and a link in its place."""
    name, _ = draw.look(draw.any_list())
    path = DATA / name
    if not path.is_symlink():
        Path("elsewhere").mkdir(exist_ok=True)
        moved = Path("elsewhere", f"{next(draw.fresh)}{path.suffix}").absolute()
        path.rename(moved)
        path.symlink_to(moved)


def add_spare(draw: Draw) -> None:
    """A photo that the preparation never saw; sometimes in place of another."""
    split = draw.any_list()
    if draw.rng.random() < 0.5:
        name, _ = draw.take(split)
        (DATA / name).unlink()
    source = draw.spare.pop()
    label = CLASSES.index(source.parent.name)
    target = draw.new_name(split, label, source.suffix)
    shutil.copy(source, DATA / target)
    draw.add(split, target, label)


def replace_file(draw: Draw) -> None:
    """Another photo, or another encoding, under an old name."""
    name, label = draw.look(draw.any_list())
    path = DATA / name
    if draw.rng.random() < 0.5:
        spare = next(path for path in draw.spare if path.parent.name == CLASSES[label])
        draw.spare.remove(spare)
        data = spare.read_bytes()
    else:
        known = draw.photo[sha(path)]
        _encode(path, Path("encoded"), "jpeg")
        data = Path("encoded").read_bytes()
        draw.photo.setdefault(hashlib.sha256(data).hexdigest(), known)
    path.unlink()
    path.write_bytes(data)


def copy_unlisted(draw: Draw) -> None:
    name, label = draw.look(draw.any_list())
    shutil.copy(DATA / name, DATA / draw.new_name(draw.any_list(), label, Path(name).suffix))


def rewrite_list(draw: Draw) -> None:
    """The same rows in another order, with blank lines, or as another editor saves them."""
    split = draw.any_list()
    lines = draw.lines(split)
    draw.rng.shuffle(lines)
    end, start = draw.rng.choice(("\n", "\r\n", " \n", "\n\n")), draw.rng.choice(("", "\ufeff"))
    (DATA / f"{split}.txt").write_bytes((start + end.join(lines) + end).encode())


def copy_list(draw: Draw) -> None:
    """A list under another name, which the loaders of its side may read."""
    split = draw.any_list()
    name = draw.rng.choice(("holdout", "my list", "test2"))
    shutil.copy(DATA / f"{split}.txt", DATA / f"{name}.txt")
    for side, own in SIDES.items():
        if own == split and draw.rng.random() < 0.7:
            draw.loaders[side]["dataset"]["ann_file"] = f"{name}.txt"


def rename_list(draw: Draw) -> None:
    split = draw.any_list()
    (DATA / f"{split}.txt").rename(DATA / "moved.txt")
    for side, own in SIDES.items():
        if own == split:
            draw.loaders[side]["dataset"]["ann_file"] = "moved.txt"


# ------------------------------------------------------------------------------------------ edits of the loaders


def side_of(draw: Draw) -> tuple[str, dict]:
    side = draw.rng.choice(("train", "val", "val", "test"))
    draw.edits.append(f"({side})")
    return side, draw.loaders[side]


def other_list(draw: Draw) -> None:
    _, loader = side_of(draw)
    names = sorted(path.name for path in DATA.glob("*.txt") if path.name != "classes.txt")
    innermost(loader)[0]["ann_file"] = draw.rng.choice(("./", "")) + draw.rng.choice(names)


def some_indices(draw: Draw) -> None:
    side, loader = side_of(draw)
    number = len(draw.lines(SIDES[side]))
    part = sorted(draw.rng.sample(range(number), draw.rng.randrange(1, number)))
    innermost(loader)[0]["indices"] = draw.rng.choice(
        (number, number // 2, -number // 2, part, list(range(number))[::-1])
    )


def batches(draw: Draw) -> None:
    _, loader = side_of(draw)
    loader["batch_size"] = draw.rng.choice((1, 2, 3, 5, 7, 9, 16, 100))
    loader["drop_last"] = draw.rng.random() < 0.5
    loader["sampler"]["shuffle"] = draw.rng.random() < 0.5


def first_batches(draw: Draw) -> None:
    _, loader = side_of(draw)
    loader["num_batch_per_epoch"] = draw.rng.choice((1, 2, 3, 100))


def other_sampler(draw: Draw) -> None:
    side, loader = side_of(draw)
    samplers = [
        dict(type="SequentialSampler", subsample_type="sequential"),
        dict(type="DefaultSampler", shuffle=True, round_up=False),
        dict(type="RepeatAugSampler", num_repeats=draw.rng.choice((1, 2, 3)), shuffle=draw.rng.random() < 0.5),
    ]
    if side != "train":
        samplers.append(dict(type="InfiniteSampler", shuffle=draw.rng.random() < 0.5))
    loader["sampler"] = draw.rng.choice(samplers)


def wrap(draw: Draw) -> None:
    side, loader = side_of(draw)
    inner, rng = loader["dataset"], draw.rng
    kind = rng.choice(("repeat", "join", "halves", "balance", "fold"))
    if kind == "repeat":
        loader["dataset"] = dict(type="RepeatDataset", dataset=inner, times=rng.choice((1, 1, 2, 3)))
    elif kind == "join":
        more = [draw.dataset(side, rng.choice(draw.splits)) for _ in range(rng.randrange(2))]
        loader["dataset"] = dict(type="ConcatDataset", datasets=[inner, *more])
    elif kind == "halves" and inner["type"] == "FlowersDataset":
        number = len(rows_of(DATA / inner["ann_file"]))
        numbers = list(range(number))
        rng.shuffle(numbers)
        cuts = sorted([0, rng.randrange(1, number), number - rng.choice((0, 0, 1))])
        parts = [dict(inner, indices=numbers[start:end]) for start, end in itertools.pairwise(cuts) if end > start]
        loader["dataset"] = dict(type="ConcatDataset", datasets=parts)
    elif kind == "balance":
        loader["dataset"] = dict(
            type="ClassBalancedDataset", dataset=inner, oversample_thr=rng.choice((1e-3, 0.5, 0.9))
        )
    elif kind == "fold":
        fold = dict(num_splits=rng.choice((2, 3)), fold=rng.randrange(2), test_mode=rng.random() < 0.5)
        loader["dataset"] = dict(type="KFoldDataset", dataset=inner, **fold, seed=rng.choice((None, 3)))


def other_reader(draw: Draw) -> None:
    """MMPretrain's own dataset, reading the list or the folder."""
    side, loader = side_of(draw)
    split = draw.rng.choice((SIDES[side], SIDES[side], "train", "val"))
    read = draw.rng.choice((dict(ann_file=f"{split}.txt", data_prefix=""), dict(ann_file="", data_prefix=split)))
    known = dict(metainfo=dict(classes=list(CLASSES)), data_root=str(DATA), pipeline=pipeline(side))
    loader["dataset"] = dict(type="CustomDataset", **read, **known)


Edit = Callable[[Draw], None]
OF_FOLDER: tuple[Edit, ...] = (
    *(drop_row, repeat_row, respell_row, move_row, move_file, share_row, relabel, copy_photo, copy_photo),
    *(rename_file, rename_file, link_file, add_spare, replace_file, copy_unlisted, rewrite_list, rewrite_list),
    *(copy_list, copy_list, rename_list),
)
OF_LOADERS: tuple[Edit, ...] = (
    *(other_list, some_indices, batches, batches, first_batches, other_sampler, wrap, wrap, wrap, other_reader),
)


# ------------------------------------------------------------------------------------------------------ the oracle


class Truth(NamedTuple):
    """What the oracle knows of a draw.

    Attributes:
        falsehoods: What would be wrong with the numbers, each with the level that its finding must have at least.
        peculiar: Whether the folder differs from the prepared one in another way, or test and val in their
            readers: a finding is no false alarm.
        given: Paths that each loader gives, as often as it gives them in an epoch; None where it can't be built.
        listed: Paths of each list.
    """

    falsehoods: list[tuple[str, str]]
    peculiar: bool
    given: dict[str, Counter[str] | None]
    listed: dict[str, Counter[str]]


def plain(dataset: Any) -> Any:
    """A dataset's config with nothing of mmflowers and no pipeline in it."""
    if isinstance(dataset, list):
        return [plain(one) for one in dataset]
    if not isinstance(dataset, dict):
        return dataset
    made = {key: plain(value) for key, value in dataset.items()}
    if "pipeline" in made:
        made["pipeline"] = []
    if made.get("type") == "FlowersDataset":
        made["type"] = "PlainList"
    return made


def served(loader: dict, epochs: int) -> tuple[Counter[tuple[str, int]], set[tuple[str, int]]] | None:
    """(path, label) of the samples of the first epoch, and of all; None where MMEngine can't build the loader."""
    config = dict(copy.deepcopy(loader), dataset=plain(loader["dataset"]))
    counts: Counter[tuple[str, int]] = Counter()
    ever: set[tuple[str, int]] = set()
    try:
        with DefaultScope.overwrite_default_scope("mmflowers"):
            built = Runner.build_dataloader(config, seed=0)
        for epoch in range(epochs):
            if hasattr(built.sampler, "set_epoch"):
                built.sampler.set_epoch(epoch)
            for number, batch in enumerate(built):
                if number > 500:  # it never ends
                    break
                samples = list(zip((normal(path) for path in batch["img_path"]), batch["gt_label"], strict=True))
                ever.update(samples)
                if epoch == 0:
                    counts.update(samples)
    except Exception:
        return None
    return counts, ever


def normal(path: str | Path) -> str:
    """Without links followed: val/x, val//x and val/./x are one file, and a link is another."""
    return str(Path(str(path).replace("/./", "/")))


def find_truth(
    draw: Draw, loaders: dict[str, dict], split: str | None = None, trained_on: Collection[str] = ()
) -> Truth:
    """What is false about the numbers of a training, or of a test on ``split`` of weights trained on some photos."""
    falsehoods: list[tuple[str, str]] = []
    photo = {path: draw.photo[sha(Path(path))] for path in _files()}
    bytes_of = {path: sha(Path(path)) for path in _files()}

    def wrong(level: str, what: str, things: Any) -> None:
        if things:
            falsehoods.append((level, f"{what}: {sorted(map(str, things))[:4]}"))

    listed = {one: Counter(map(normal, draw.paths(one))) for one in draw.splits if (DATA / f"{one}.txt").is_file()}
    labels = {one: _labels(draw, one) for one in listed}
    found = {side: served(loader, EPOCHS if side == "train" else 1) for side, loader in loaders.items()}
    for side, result in found.items():
        wrong("error", f"{side} can't be built", [side] * (result is None))
    given = {side: result and Counter(path for path, _ in result[0].elements()) for side, result in found.items()}
    trained = {path for path, _ in found["train"][1]} if found.get("train") else set()
    seen = {photo[path][0] for path in trained if path in photo} | set(trained_on)
    for side, result in found.items():
        if result is None:
            continue
        samples, ever = result
        own = split or SIDES[side]
        counted = Counter(path for path, _ in samples.elements()) if side != "train" else Counter(trained)
        if side == "test" and split is None and "test" in listed:
            own = (
                "test" if 2 * sum(n for path, n in counted.items() if path in listed["test"]) > counted.total() else own
            )
        missing = [path for path in counted if path not in photo]
        wrong("error", f"{side} reads files that aren't there", missing)
        if missing:
            continue
        shown = Counter(photo[path][0] for path in counted.elements())
        copies = [data for data, number in Counter(bytes_of[path] for path in counted.elements()).items() if number > 1]
        if side != "train":
            wrong("error", f"{side} counts photos that are trained on", shown.keys() & seen)
            wrong("error", f"{side} counts twice", copies)
            wrong("warning", f"{side} counts copies", [name for name, number in shown.items() if number > 1])
        else:
            wrong("warning", "trains twice", copies)
        wrong("warning", f"{side} leaves out photos of {own}.txt", set(listed.get(own, ())) - set(counted))
        wrong("warning", f"{side} leaves out prepared photos", draw.true[own] - shown.keys())
        wrong("warning", f"{side} takes photos of elsewhere", shown.keys() - draw.true[own])
        wrong("warning", f"{side} labels", [path for path, label in ever if photo[path][1] != label])
    val, test = ({one["type"] for one in innermost(draw.loaders[side])} for side in ("val", "test"))
    peculiar = _peculiar(draw, listed, labels, photo) or val != test
    return Truth(falsehoods, peculiar, given, listed)


def innermost(dataset: dict) -> list[dict]:
    """The datasets that read photos themselves, of a dataset or a loader."""
    inside = dataset.get("datasets") or ([dataset["dataset"]] if "dataset" in dataset else [])
    return [found for one in inside for found in innermost(one)] if inside else [dataset]


def _files() -> list[str]:
    return [normal(path) for path in DATA.glob("*/**/*") if path.suffix in (".jpg", ".jpeg", ".png")]


def _labels(draw: Draw, split: str) -> list[tuple[str, int]]:
    rows = (line.rpartition(" ") for line in draw.lines(split))
    return [(normal(DATA / name), int(label)) for name, _, label in rows]


def _peculiar(draw: Draw, listed: dict, labels: dict, photo: dict) -> bool:
    """Whether lists or files, whatever the loaders read of them, aren't as a preparation leaves them."""
    if set(listed) != set(draw.splits) or set().union(*listed.values()) != set(photo):
        return True
    shown = {split: Counter(photo[path][0] for path in paths.elements()) for split, paths in listed.items()}
    return (
        any(sha(Path(path)) not in draw.prepared for path in photo)
        or any(shown[split] != Counter(draw.true[split]) for split in shown)
        or any(photo[path][1] != label for rows in labels.values() for path, label in rows)
    )


# ------------------------------------------------------------------------------------------------------- the draws


def draws(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Each through the checks of a training or a test; ``place`` is the current folder."""
    from mmflowers.preparation.options import PrepareOptions
    from mmflowers.preparation.prepare import prepare
    from mmflowers.rendered.photos import render_flowers

    render_flowers(Path("source"), 12, short_side=96, kinds=CLASSES)
    render_flowers(SPARE, 4, short_side=96, kinds=CLASSES, seed=1)
    prepare(PrepareOptions(out="two", source="source", val_ratio="0.25", workers=1))
    prepare(PrepareOptions(out="three", source="source", val_ratio="0.25", test_ratio="0.25", workers=1))
    photo = {sha(path): (path.stem, CLASSES.index(path.parent.name)) for path in Path("source").glob("*/*")}
    photo |= {sha(path): (f"spare {path.stem}", CLASSES.index(path.parent.name)) for path in SPARE.glob("*/*")}
    gc.freeze()  # MMEngine looks for garbage whenever it builds a dataset, which took half of the time
    for at in range(number):
        draw = Draw(Path(rng.choice(("two", "three"))), photo, rng)
        of_folder, of_loaders = rng.choice(((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1), (3, 2)))
        if at:  # the first is as it was prepared
            for edit in [*rng.choices(OF_FOLDER, k=of_folder), *rng.choices(OF_LOADERS, k=of_loaders)]:
                draw.edits.append(edit.__name__)
                with contextlib.suppress(OSError, IndexError, ValueError):  # of an earlier edit's making: nothing to do
                    edit(draw)
        Path("mine.py").write_text(draw.config(), encoding="utf-8")
        yield tested(draw) if rng.random() < 0.2 else trained(draw)


def trained(draw: Draw) -> Case:
    """The draw as a training."""
    found: list[Finding] = []

    def check(error: InputError | None) -> tuple:
        truth = find_truth(draw, draw.loaders)
        level = judge(draw, truth, found, error)
        ran = ()
        if level != "refused" and draw.rng.random() < RUNS:
            run_training(draw, truth)
            ran = ("trained",)
        return (1, 0, *ran) if level == "refused" else (0, 1, level, *ran)

    return Case(lambda: found.extend(check_config("mine.py", weights="none")), check)


def tested(draw: Draw) -> Case:
    """The draw as a test of weights that were trained on the folder as it was prepared."""
    split = draw.rng.choice(draw.splits[1:])
    found: list[Finding] = []

    def before(config, problems) -> None:
        found.extend(check_testing(config, problems, split=split))
        raise InputError("enough")

    def act() -> None:
        with contextlib.suppress(InputError):
            run_test("mine.py", weights_of(draw), split=split, work_dir="tested", before=before)

    def check(error: InputError | None) -> tuple:
        loader = copy.deepcopy(draw.loaders["test"])
        for dataset in innermost(loader):  # as tools/test.py does, whatever the config reads
            dataset["ann_file"] = f"{split}.txt"
        truth = find_truth(draw, {"test": loader}, split, draw.true["train"])
        level = judge(draw, truth, found, error)
        ran = ()
        if level != "refused" and draw.rng.random() < RUNS:
            run_testing(draw, truth, split)
            ran = ("tested",)
        return (1, 0, *ran) if level == "refused" else (0, 1, level, *ran)

    return Case(act, check)


def weights_of(draw: Draw) -> Path:
    """``best.pth`` of a training on a folder as it was prepared; made once."""
    kept = Path("trained on three" if "test" in draw.splits else "trained on two")
    if not kept.exists():
        now = DATA.rename("now")
        shutil.copytree("three" if "test" in draw.splits else "two", DATA)
        Path("pristine.py").write_text(draw.pristine_config, encoding="utf-8")
        train(configure(TrainOptions("pristine.py", weights="none", work_dir=kept)))
        shutil.rmtree(DATA)
        now.rename(DATA)
    return kept / "best.pth"


def judge(draw: Draw, truth: Truth, found: list[Finding], error: InputError | None) -> str:
    """Hold the findings against the truth: "refused", "warned" or "clean"."""
    levels = {finding.level for finding in found} | ({"error"} if error else set())
    said = [f"{finding.level}: {finding.where}: {finding.what}" for finding in found] + ([str(error)] if error else [])
    story = f"edits {draw.edits}\ntruth {truth.falsehoods}, peculiar: {truth.peculiar}\nfound {said}\n{draw.config()}"
    needed = {level for level, _ in truth.falsehoods}
    assert "error" not in needed or "error" in levels, f"not refused: {story}"
    assert not needed or levels, f"not a word: {story}"
    assert needed or truth.peculiar or not levels, f"a false alarm: {story}"
    return "refused" if "error" in levels else "warned" if levels else "clean"


def run_training(draw: Draw, truth: Truth) -> None:
    """Train for an epoch; what is loaded, and what the outcome says, must be what the oracle says."""
    shutil.rmtree("trained", ignore_errors=True)
    Ledger.seen.clear()
    outcome = train(configure(TrainOptions("mine.py", weights="none", work_dir="trained")))
    loaded = {side: Counter() for side in ("train", "val")}
    for (side, path), times in Ledger.seen.items():
        if Path(path).is_relative_to(DATA):
            loaded[side][normal(path)] += times
    story = f"edits {draw.edits}\noutcome {outcome}\n{draw.config()}"
    expected = truth.given["val"]
    assert loaded["val"] == expected, f"the validation loaded {loaded['val']}, not {expected}: {story}"
    assert loaded["train"].total() == truth.given["train"].total(), f"the training loaded {loaded['train']}: {story}"
    _holds(outcome.coverage, expected, draw, truth, "val", story)


def run_testing(draw: Draw, truth: Truth, split: str) -> None:
    """Test; the photos in the predictions, and what the coverage says, must be what the oracle says."""
    tested = run_test("mine.py", weights_of(draw), split=split, work_dir="tested")
    images = Counter(normal(DATA / image) for image in tested.predictions.images)
    story = f"edits {draw.edits}\ntest of {split}: {tested.coverage}\n{draw.config()}"
    assert images == truth.given["test"], f"counted {images}, not {truth.given['test']}: {story}"
    _holds(tested.coverage, images, draw, truth, split, story)


def _holds(coverage: Coverage, counted: Counter[str], draw: Draw, truth: Truth, split: str, story: str) -> None:
    prepared = draw.places[split]
    gone = {digest for place, digest in prepared.items() if place not in counted}
    own = {path for path in counted if path in prepared or sha(Path(path)) in gone}
    others = len(counted) - len(own)
    assert str(coverage) == f"{len(own)} of {len(prepared)} photos" + (f" and {others} others" if others else ""), story
    once = all(times == 1 for times in counted.values())
    assert coverage.is_whole == (once and not others and len(own) == len(prepared)), story
