"""The fast pieces change how long it takes, and nothing that is learned or said."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NARROW, ROOT, run_tool
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from ours.rates import measure_rates
from replay import Replay

import mmflowers.engine  # noqa: F401  registers
from mmflowers.datasets.flowers import FlowersDataset
from mmflowers.datasets.seeded import Draw, SeededDataset
from mmflowers.engine import configuration, options
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.registry import HOOKS, MODELS
from mmflowers.speed.hooks import CUDAGraphHook, OutOfPlaceHook
from mmflowers.speed.loops import _Evaluation
from mmflowers.speed.precision import has_fast_bfloat16
from mmflowers.transforms.batched import STILL, Augmentation
from mmflowers.utils.errors import InputError

names = itertools.count()


@pytest.fixture
def run(dataset: Path, tiny_config: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train in a folder by a settled config that may be changed before, and return the folder."""

    def train_it(folder: str, *options: str, change: Callable[[Config], object] = lambda config: None, **flags) -> Path:
        config = configure(
            TrainOptions(
                flags.pop("config", tiny_config),
                data=dataset,
                weights=None if flags.get("resume") else "none",
                work_dir=tmp_path / folder,
                cfg_options=[f"experiment_name=fast{next(names)}", *NARROW, *options],
                **flags,
            )
        )
        change(config)
        train(config)
        return tmp_path / folder

    return train_it


def scalars(work_dir: Path) -> list[dict]:
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    times = ("time", "data_time", "eta")
    return [
        {key: value for key, value in json.loads(line).items() if key not in times}
        for line in path.read_text().splitlines()
    ]


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / "last.pth", weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path) -> None:
    for (name, mine), theirs in zip(weights(one).items(), weights(other).values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_has_a_fast_form(path: Path) -> None:
    config = configuration.load_config(path)
    options.make_fast(config)
    train, *evaluated = configuration.datasets(config)
    edge = next(step.get("size", step.get("scale")) for step in train.pipeline if "ResizedCrop" in step.type)
    assert Augmentation(train.pipeline).size == edge
    assert all(step.type in STILL for dataset in evaluated for step in dataset.pipeline)


def test_the_config_and_the_flag_are_the_same_pieces() -> None:
    config = configuration.load_config(ROOT / "configs" / "resnet50_flowers_fast.py")
    flag = configuration.load_config(ROOT / "configs" / "resnet50_flowers.py")
    options.make_fast(flag)
    configuration.disable_idle_workers(flag)
    keys = ("data_preprocessor", "optim_wrapper", "train_cfg", "val_cfg", "default_hooks", "custom_hooks", "env_cfg")
    for key in (*keys, *configuration.LOADERS):
        assert config[key] == flag[key], key


def test_it_learns_and_validates_and_what_it_leaves_can_be_tested(dataset: Path, tiny_config: Path, tmp_path: Path):
    trained = run_tool("train.py", tiny_config, "--fast", "--data", dataset, "--weights", "none", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    work_dir = tmp_path / "work_dirs" / "tiny"
    best = max(line["accuracy/top1"] for line in scalars(work_dir) if "accuracy/top1" in line)
    tested = run_tool("test.py", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert f"top-1 {best:.2f} %" in tested.stdout
    predicted = run_tool("predict.py", dataset / "val", "--run", work_dir, cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr


def test_stopped_and_resumed_it_comes_to_the_same_weights(run: Callable[..., Path]) -> None:
    straight = run("straight", fast=True)

    def end_after_one(config: Config) -> None:
        config.train_cfg.max_epochs = 1

    run("stopped", fast=True, change=end_after_one)
    assert_same(straight, run("stopped", fast=True, resume=True))


@pytest.mark.slow
def test_losses_that_are_looked_at_later_are_the_same(run: Callable[..., Path]) -> None:
    def eager(config: Config) -> None:
        config.default_hooks.runtime_info = dict(type="RuntimeInfoHook")
        config.train_cfg.loss_interval = 1

    lazy = run("lazy", "default_hooks.logger.interval=2", "default_hooks.runtime_info.interval=2", fast=True)
    plain = run("plain", "default_hooks.logger.interval=2", fast=True, change=eager)
    assert_same(lazy, plain)
    for mine, theirs in zip(scalars(lazy), scalars(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_the_fast_validation_says_what_mmengines_says(run: Callable[..., Path]) -> None:
    def slow(config: Config) -> None:
        config.val_cfg = dict()

    fast, stock = run("fast", fast=True), run("stock", fast=True, change=slow)
    accuracies = [[line["accuracy/top1"] for line in scalars(d) if "accuracy/top1" in line] for d in (fast, stock)]
    assert accuracies[0] == accuracies[1] and len(accuracies[0]) == 2


def test_a_loss_that_isnt_finite_stops_it_within_the_epoch(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss became \S+ in epoch 1, iteration \d or one of the 49 before it"):
        run("spoilt", "optim_wrapper.optimizer.lr=1e30", "param_scheduler=None", fast=True)
    assert not (tmp_path / "spoilt" / "last.pth").exists()


@HOOKS.register_module()
class SizesHook(Hook):
    """Notes the edge of what each batch becomes."""

    def before_train(self, runner) -> None:
        self.edges: list[int] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.edges.append(data_batch["augment"](data_batch["inputs"]).shape[-1])

    def after_train(self, runner) -> None:
        Path(runner.work_dir, "edges.json").write_text(json.dumps(self.edges))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_grow_in_size(run: Callable[..., Path], workers: int) -> None:
    def grow(config: Config) -> None:
        config.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
        config.custom_hooks += [dict(type="ProgressiveResizeHook", sizes={1: 32, 2: 48}), dict(type="SizesHook")]

    assert json.loads((run("grown", fast=True, change=grow) / "edges.json").read_text()) == [32] * 5 + [48] * 5


@pytest.mark.slow
def test_sizes_need_a_cache(run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="needs a dataset with a cache"):
        run("grown", change=lambda c: c.custom_hooks.append(dict(type="ProgressiveResizeHook", sizes={1: 32})))


def test_sizes_need_a_pipeline_for_whole_batches(run: Callable[..., Path]) -> None:
    def grow(config: Config) -> None:
        erase(config)
        config.custom_hooks.append(dict(type="ProgressiveResizeHook", sizes={1: 32}))

    with pytest.raises(InputError, match="a batched form; this one has RandomErasing"):
        run("grown", fast=True, change=grow)


def erase(config: Config) -> None:
    """Give the training a transform that has no batched form."""
    config.train_dataloader.dataset.pipeline.insert(-1, dict(type="RandomErasing", erase_prob=0.5, mode="rand"))


@pytest.mark.slow
def test_transforms_without_a_batched_form_run_photo_by_photo_and_resume_to_the_same_weights(
    run: Callable[..., Path], tiny_config: Path, tmp_path: Path
) -> None:
    erasing = configuration.load_config(tiny_config)
    erase(erasing)
    erasing.dump(tmp_path / "erasing.py")
    options = dict(fast=True, config=tmp_path / "erasing.py")

    def in_a_worker(config: Config) -> None:
        config.train_dataloader.update(num_workers=1, persistent_workers=True)

    def end_after_one(config: Config) -> None:
        config.train_cfg.max_epochs = 1

    straight = run("straight", **options, change=in_a_worker)
    (log,) = straight.glob("*/*.log")
    told = (
        "RandomFlip, RandomErasing, PackInputs run photo by photo in 1 loader worker: no batched form of RandomErasing"
    )
    assert log.read_text().count(told) == 1
    run("stopped", **options, change=end_after_one)
    assert_same(straight, run("stopped", **options, resume=True))


def test_a_stock_recipe_keeps_its_workers_where_its_transforms_need_them(tiny_config: Path) -> None:
    config = configuration.load_config(tiny_config)
    config.train_dataloader.num_workers = config.val_dataloader.num_workers = 2
    erase(config)
    options.make_fast(config)
    assert (config.train_dataloader.num_workers, config.val_dataloader.num_workers) == (2, 0)


def test_batches_that_nothing_would_augment_are_refused(run: Callable[..., Path]) -> None:
    def stock_preprocessor(config: Config) -> None:
        config.data_preprocessor.type = "ClsDataPreprocessor"

    with pytest.raises(InputError, match="ClsDataPreprocessor doesn't augment the batches"):
        run("squares", fast=True, change=stock_preprocessor)


@HOOKS.register_module()
class PhotosHook(Hook):
    """Notes what the network gets of each photo in each epoch."""

    def before_train(self, runner) -> None:
        self.seen: dict[tuple[int, int], torch.Tensor] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for image, sample in zip(data_batch["inputs"], data_batch["data_samples"], strict=True):
            self.seen[runner.epoch, sample.sample_idx] = image.clone()

    def after_train(self, runner) -> None:
        torch.save(self.seen, Path(runner.work_dir, "seen.pth"))


@pytest.mark.slow
def test_a_recipe_that_is_switched_is_seeded_as_without_a_cache_and_resumes(
    run: Callable[..., Path], dataset: Path
) -> None:
    load, pack = dict(type="LoadImageFromFile"), dict(type="PackInputs")
    pipelines = [[load, dict(type="RandomResizedCrop", scale=edge, backend="pillow"), pack] for edge in (32, 48)]

    def switch(config: Config) -> None:
        schedule = [dict(action_epoch=epoch, train_pipeline=steps) for epoch, steps in enumerate(pipelines, 1)]
        config.custom_hooks += [dict(type="SwitchRecipeHook", schedule=schedule), dict(type="PhotosHook")]

    def in_a_worker(config: Config) -> None:
        switch(config)
        config.train_dataloader.update(num_workers=1, persistent_workers=True)

    def end_after_one(config: Config) -> None:
        switch(config)
        config.train_cfg.max_epochs = 1

    straight = run("straight", fast=True, change=in_a_worker)
    seen = torch.load(straight / "seen.pth")
    assert len(seen) == 80
    with DefaultScope.overwrite_default_scope("mmflowers"):
        for epoch, steps in enumerate(pipelines):
            plain = SeededDataset(FlowersDataset(data_root=str(dataset), ann_file="train.txt", pipeline=steps), seed=0)
            for index in range(40):
                assert torch.equal(seen[epoch, index], plain[Draw(epoch, 0, 0, index)]["inputs"])
    run("stopped", fast=True, change=end_after_one)
    assert_same(straight, run("stopped", fast=True, resume=True, change=switch))


@pytest.mark.parametrize("flags", [dict(freeze_to="layer2"), dict(probe=True)])
def test_features_that_are_computed_once_refuse_a_pipeline_that_changes(
    flags: dict, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = tmp_path / "switched.py"
    config.write_text(
        f"_base_ = {str(tiny_config)!r}\n"
        "custom_hooks = [dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=2, train_pipeline=[])])]\n"
    )
    with pytest.raises(InputError, match="SwitchRecipeHook changes the pipeline"):
        configure(TrainOptions(config, data=dataset, weights="none", work_dir=tmp_path / "work", **flags))


def test_bfloat16_is_taken_where_the_processor_has_it(run: Callable[..., Path]) -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or torch.cuda.is_available():
        pytest.skip("asks Linux what the processor has")
    words = set(flags.read_text().split())
    assert has_fast_bfloat16(torch.device("cpu")) == bool(words & {"avx512_bf16", "amx_tile"})


@pytest.mark.parametrize("activation", OutOfPlaceHook.CLONED)
def test_an_activation_is_not_copied_before_it_is_overwritten(activation: type) -> None:
    """Whether autograd clones is PyTorch's to say: a class for which it stops doing so doesn't belong to the list."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), activation(inplace=True))
    hook, runner = OutOfPlaceHook(), SimpleNamespace(model=model)

    def clones() -> int:
        with torch.profiler.profile() as profile:
            model(torch.ones(2, 4))
        return sum(event.count for event in profile.key_averages() if event.key == "aten::clone")

    assert clones() == 1
    hook.before_train_epoch(runner)
    assert clones() == 0
    hook.after_train_epoch(runner)
    assert model[1].inplace


@HOOKS.register_module()
class ReplayHook(CUDAGraphHook):
    """The same on a CPU, by what stands for CUDA's graphs there; tells how many it made and replayed."""

    device = "cpu"

    def before_train(self, runner) -> None:
        self.make = Replay()
        super().before_train(runner)

    def after_train(self, runner) -> None:
        Path(runner.work_dir, "replayed.json").write_text(json.dumps([self.make.made, self.make.replayed]))


def replay(config: Config) -> None:
    config.custom_hooks = [dict(type="ReplayHook") if h.type == "CUDAGraphHook" else h for h in config.custom_hooks]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [None, "layer2"])
def test_replayed_graphs_come_to_the_same_weights(run: Callable[..., Path], frozen: str | None) -> None:
    replayed = run("replayed", fast=True, freeze_to=frozen, change=replay)
    assert_same(replayed, run("plain", fast=True, freeze_to=frozen))
    # Two epochs of five batches of 8: all but the first by a graph, which was replayed once to be compared.
    assert json.loads((replayed / "replayed.json").read_text()) == [1, 1 + 9]


def test_gradients_that_are_accumulated_take_no_graph(run: Callable[..., Path]) -> None:
    accumulated = run("accumulated", "optim_wrapper.accumulative_counts=2", fast=True, change=replay)
    assert json.loads((accumulated / "replayed.json").read_text()) == [0, 0]


def test_their_rates_are_measured_with_a_validation_in_the_middle_of_an_epoch(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    options = [f"experiment_name=fast{next(names)}", *NARROW]
    config = configure(
        TrainOptions(tiny_config, data=dataset, weights="none", work_dir=tmp_path, cfg_options=options, fast=True)
    )
    replay(config)
    rates = measure_rates(config, started=time.time(), warmup=2, iterations=2)
    assert rates["eval_images"] == 10 and rates["images_per_second"] > 0


def test_a_fast_evaluation_of_a_network_with_nested_features_gives_what_the_plain_one_does() -> None:
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type="ImageClassifier",
            backbone=dict(type="InceptionV3", num_classes=3, aux_logits=False),
            head=dict(type="ClsHead", loss=dict(type="CrossEntropyLoss")),
            data_preprocessor=dict(type="ClsDataPreprocessor", num_classes=3, mean=[128] * 3, std=[64] * 3),
        )
    ).eval()
    batches = [
        {
            "inputs": torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8),
            "data_samples": [DataSample() for _ in "ab"],
        }
        for _ in range(2)
    ]
    expected = [sample.pred_score for batch in batches for sample in model.val_step(copy.deepcopy(batch))]
    evaluation = _Evaluation(SimpleNamespace(model=model), nullcontext)
    for batch in batches:
        evaluation.take(batch)
    found = []
    evaluation.finish(SimpleNamespace(process=lambda data_samples, data_batch: found.extend(data_samples)))
    torch.testing.assert_close(torch.stack([s.pred_score for s in found]), torch.stack(expected), rtol=1e-3, atol=1e-4)
