"""The training pipelines of MMPretrain's classification recipes, of all families, run with ``--fast``."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import mmpretrain
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmflowers.datasets.flowers
import mmflowers.engine  # noqa: F401  both register
from mmflowers.engine import configuration, options
from mmflowers.engine.runner import FlowersRunner
from mmflowers.registry import MODELS, OPTIM_WRAPPERS, OPTIMIZERS

CONFIGS = Path(mmpretrain.__file__).parent / ".mim" / "configs"
EDGE = 48
# What docs/performance.md names as the transforms that stay with the loader's workers.
UNBATCHED = {
    "RandAugment",
    "AutoAugment",
    "RandomErasing",
    "RandomCrop",
    "Resize",
    "Lighting",
    "EfficientNetRandomCrop",
}
BROKEN = {"replknet-31B_32xb64_in1k", "replknet-31B_32xb64_in1k-384px"}  # MMEngine can't read them: a base is JSON


@functools.cache
def pipelines_of(path: Path) -> frozenset[str]:
    """The text of the pipelines in a config and its bases, sizes and other numbers left out."""
    texts = re.findall(r"(?ms)^t\w+_pipeline = \[.*?^\]", path.read_text(encoding="utf-8"))
    found = {re.sub(r"\d+", "", text) for text in texts}
    for base in Config._get_base_files(str(path)):
        found |= pipelines_of((path.parent / base).resolve())
    return frozenset(found)


def recipes() -> dict[Path, set[str]]:
    """One config for all that have the same pipelines, and the families of those."""
    first: dict[frozenset, Path] = {}
    families: dict[Path, set[str]] = {}
    for path in sorted(CONFIGS.glob("*/*.py")):
        if path.parent.name != "_base_" and path.stem not in BROKEN and "ImageClassifier" in model_of(path):
            one = first.setdefault(pipelines_of(path), path)
            families.setdefault(one, set()).add(path.parent.name)
    return families


@functools.cache
def model_of(path: Path) -> str:
    """The type of the model that a config or one of its bases names; empty where none does."""
    named = re.search(r"^model = dict\(\s*type='(\w+)'", path.read_text(encoding="utf-8"), re.MULTILINE)
    bases = () if named else ((path.parent / base).resolve() for base in Config._get_base_files(str(path)))
    return named[1] if named else next(filter(None, map(model_of, bases)), "")


def on_our_folder(config: Config, root: Path) -> bool:
    """Point a recipe at a dataset folder, on small images; whether it trains on files of photos."""
    loaders = {split: config.get(f"{split}_dataloader") for split in ("test", "val", "train")}
    if not loaders["train"] or not config.get("optim_wrapper"):
        return False
    for split, loader in loaders.items():
        if loader:
            steps = [dict(step) for step in loader.dataset.get("pipeline") or [{}]]
            if steps[0].get("type") != "LoadImageFromFile":
                return False
            folder = dict(data_root=str(root), ann_file="train.txt" if split == "train" else "val.txt")
            loader.dataset = dict(type="FlowersDataset", pipeline=steps, serialize_data=False, **folder)
            loader.batch_size, loader.num_workers = 3, 0
    crop = [step for step in config.train_dataloader.dataset.pipeline if "scale" in step or "crop_size" in step][-1]
    edge = crop.get("crop_size") or crop["scale"]
    options._scale_images(config, EDGE / (edge if isinstance(edge, int) else edge[0]))
    return True


def first_batch(loader: dict) -> tuple[dict, list[str]]:
    """A loader's first batch, and the transforms that keep its pipeline from being computed for whole batches."""
    built = FlowersRunner.build_dataloader(loader, seed=3)
    return next(iter(built)), built.dataset.unbatched


def test_every_family_has_a_fast_form(dataset: Path) -> None:
    families, seen, unbatched = set(), set(), set()
    for path, its_families in recipes().items():
        config = Config.fromfile(path, use_predefined_variables=False)
        if not on_our_folder(config, dataset):
            continue
        families |= its_families
        options.make_fast(config)
        configuration.disable_idle_workers(config)
        assert_its_optimizer_can_be_built(config.optim_wrapper)
        with DefaultScope.overwrite_default_scope("mmflowers"):
            preprocess = MODELS.build({**config.data_preprocessor, "num_classes": 5})
            for name in filter(config.get, ("train_dataloader", "val_dataloader")):
                loader = config[name]
                if repr(loader.dataset.pipeline) in seen:
                    continue
                seen.add(repr(loader.dataset.pipeline))
                batch, reasons = first_batch(loader)
                unbatched.update(reasons)
                if reasons:  # photo by photo, as without --fast
                    assert name == "train_dataloader", path
                    plain, _ = first_batch({**loader, "dataset": {**loader.dataset, "cache": False}})
                    assert all(map(torch.equal, batch["inputs"], plain["inputs"])), path
                got = preprocess(batch, name == "train_dataloader")
                assert got["inputs"].shape[:2] == (3, 3) and got["inputs"].dtype == torch.float32, path
                assert len(got["data_samples"]) == 3, path
    assert len(families) >= 50
    assert unbatched == UNBATCHED


def assert_its_optimizer_can_be_built(wrapper: dict) -> None:
    optimizer = OPTIMIZERS.build({**wrapper["optimizer"], "params": [torch.nn.Parameter(torch.ones(2))]})
    others = {key: value for key, value in wrapper.items() if key not in ("paramwise_cfg", "constructor")}
    OPTIM_WRAPPERS.build({**others, "optimizer": optimizer})
