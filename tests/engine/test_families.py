"""Every family of MMPretrain's classifiers on our bases, by the few lines of docs/networks.md: training, probe, cut."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from zoo import MMPRETRAIN, weights_and_configs

from mmflowers.checks import keys
from mmflowers.checks.run import Case
from mmflowers.engine.configuration import datasets, load_config, set_classes
from mmflowers.engine.single_label import require_single_label
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.frozen.parts import FrozenBackbone, FrozenNetwork, FrozenPart, FrozenStem
from mmflowers.models.classifier import classifier_layers
from mmflowers.registry import MODELS
from mmflowers.utils.errors import InputError

PAGE = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
CLASSES = 3
AVERAGED = "the rest needs more than its output"  # the scores are the mean or the sum of two linear layers'
TWO_OUTPUTS = "tensors, not one"
IN_BACKBONE = "is a layer of the backbone"


@dataclass
class Family:
    """A small network of a family.

    Attributes:
        config: MMPretrain's.
        layer: One in the middle of the backbone, to freeze to.
        edge: Of the images, in pixels.
        backbone: What makes it smaller than the config does.
        head: Likewise.
        probe: Why ``--probe`` refuses it; empty where it doesn't.
        whole: Why ``--freeze-to backbone`` does.
        cut: Why ``--freeze-to`` the layer does.
    """

    config: str
    layer: str
    edge: int = 64
    backbone: dict = field(default_factory=dict)
    head: dict = field(default_factory=dict)
    probe: str = ""
    whole: str = ""
    cut: str = ""


VIT = dict(arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64), img_size=64)
OF_32 = dict(in_channels=32)
FAMILIES = {
    "clip": Family("clip/vit-base-p32_pt-64xb64_in1k", "layers.1", backbone=VIT, head=OF_32),
    "conformer": Family(
        "conformer/conformer-tiny-p16_8xb128_in1k", "conv_trans_6", probe=AVERAGED, whole=TWO_OUTPUTS, cut=TWO_OUTPUTS
    ),
    "convmixer": Family(
        "convmixer/convmixer-768-32_10xb64_in1k",
        "stages.1",
        backbone=dict(arch=dict(embed_dims=32, depth=3, patch_size=7, kernel_size=3)),
        head=OF_32,
    ),
    "convnext": Family(
        "convnext/convnext-tiny_32xb128_in1k",
        "stages.2",
        backbone=dict(arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])),
        head=OF_32,
    ),
    "convnext_v2": Family("convnext_v2/convnext-v2-atto_32xb32_in1k", "stages.2"),
    "cspnet": Family("cspnet/cspresnet50_8xb32_in1k", "stages.2"),
    "csra": Family("csra/resnet101-csra_1xb16_voc07-448px", "layer3", backbone=dict(depth=50), probe="no linear layer"),
    "davit": Family(
        "davit/davit-tiny_4xb256_in1k",
        "stages.1",
        edge=224,
        backbone=dict(arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])),
        head=dict(in_channels=64),
    ),
    "deit": Family("deit/deit-tiny_4xb256_in1k", "layers.10", backbone=dict(img_size=64)),
    "deit, distilled": Family(
        "deit/deit-tiny-distilled_4xb256_in1k",
        "layers.10",
        backbone=dict(img_size=64),
        probe=AVERAGED,
        whole=TWO_OUTPUTS,
    ),
    "deit3": Family("deit3/deit3-small-p16_64xb64_in1k", "layers.1", backbone=VIT, head=OF_32),
    "densenet": Family("densenet/densenet121_4xb256_in1k", "stages.2"),
    "edgenext": Family("edgenext/edgenext-xxsmall_8xb256_in1k", "stages.2"),
    "efficientformer": Family(
        "efficientformer/efficientformer-l1_8xb128_in1k", "network.2", edge=224, head=dict(distillation=False)
    ),
    "efficientnet": Family("efficientnet/efficientnet-b0_8xb32_in1k", "layers.5"),
    "efficientnet_v2": Family("efficientnet_v2/efficientnetv2-b0_8xb32_in1k", "layers.6"),
    "eva": Family("eva/eva-l-p14_8xb16_in1k-196px", "layers.1", edge=56, backbone=VIT | dict(img_size=56), head=OF_32),
    "eva02": Family("eva02/eva02-tiny-p14_in1k", "layers.10", edge=56, backbone=dict(img_size=56)),
    "hivit": Family("hivit/hivit-tiny-p16_16xb64_in1k", "blocks.8", backbone=dict(img_size=64)),
    "hornet": Family("hornet/hornet-tiny_8xb128_in1k", "stages.2"),
    "hrnet": Family("hrnet/hrnet-w18_4xb32_in1k", "stage3", cut=TWO_OUTPUTS),
    "inception_v3": Family("inception_v3/inception-v3_8xb32_in1k", "Mixed_6e", edge=96, whole=IN_BACKBONE),
    "levit": Family("levit/levit-128s_8xb256_in1k", "stages.1", edge=224, head=dict(distillation=False)),
    "mlp_mixer": Family(
        "mlp_mixer/mlp-mixer-base-p16_64xb64_in1k",
        "layers.1",
        backbone=dict(arch=dict(embed_dims=32, num_layers=3, tokens_mlp_dims=16, channels_mlp_dims=64), img_size=64),
        head=OF_32,
    ),
    "mobilenet_v2": Family("mobilenet_v2/mobilenet-v2_8xb32_in1k", "layer3"),
    "mobilenet_v3": Family("mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k", "layer5"),
    "mobileone": Family("mobileone/mobileone-s0_8xb32_in1k", "stage2"),
    "mobilevit": Family("mobilevit/mobilevit-xxsmall_8xb128_in1k", "layers.3"),
    "mvit": Family("mvit/mvitv2-tiny_8xb256_in1k", "blocks.8", backbone=dict(img_size=64)),
    "poolformer": Family("poolformer/poolformer-s12_32xb128_in1k", "network.5"),
    "regnet": Family("regnet/regnetx-400mf_8xb128_in1k", "layer3"),
    "replknet": Family(
        "replknet/replknet-31L_32xb64_in1k-384px",
        "stages.2",
        backbone=dict(
            arch=dict(
                large_kernel_sizes=[7, 7, 7, 7],
                layers=[1, 1, 1, 1],
                channels=[8, 16, 24, 32],
                small_kernel=5,
                dw_ratio=1,
            )
        ),
        head=OF_32,
    ),
    "repmlp": Family(
        "repmlp/repmlp-base_8xb64_in1k",
        "stages.2",
        edge=224,
        backbone=dict(arch=dict(channels=[8, 16, 24, 32], depths=[1, 1, 1, 1], sharesets_nums=[1, 2, 2, 2])),
        head=OF_32,
    ),
    "repvgg": Family("repvgg/repvgg-A0_8xb32_in1k", "stage_3"),
    "res2net": Family("res2net/res2net50-w14-s8_8xb32_in1k", "layer3"),
    "resnest": Family("resnest/resnest50_32xb64_in1k", "layer3"),
    "resnet": Family("resnet/resnet18_8xb32_in1k", "layer3"),
    "resnext": Family("resnext/resnext50-32x4d_8xb32_in1k", "layer3"),
    "revvit": Family("revvit/revvit-small_8xb256_in1k", "layers.6", backbone=dict(img_size=64), cut=TWO_OUTPUTS),
    "riformer": Family("riformer/riformer-s12_8xb128_in1k", "network.5"),
    "seresnet": Family("seresnet/seresnet50_8xb32_in1k", "layer3"),
    "shufflenet_v1": Family("shufflenet_v1/shufflenet-v1-1x_16xb64_in1k", "layers.1"),
    "shufflenet_v2": Family("shufflenet_v2/shufflenet-v2-1x_16xb64_in1k", "layers.1"),
    "swin_transformer": Family(
        "swin_transformer/swin-tiny_16xb64_in1k",
        "stages.1",
        backbone=dict(arch=dict(embed_dims=8, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2]), window_size=2, img_size=64),
        head=dict(in_channels=64),
    ),
    "swin_transformer_v2": Family(
        "swin_transformer_v2/swinv2-tiny-w8_16xb64_in1k-256px",
        "stages.1",
        backbone=dict(
            arch=dict(embed_dims=8, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2], extra_norm_every_n_blocks=0),
            window_size=[2, 2, 2, 2],
            img_size=64,
        ),
        head=dict(in_channels=64),
    ),
    "t2t_vit": Family("t2t_vit/t2t-vit-t-14_8xb64_in1k", "encoder.6", backbone=dict(img_size=64)),
    "tinyvit": Family("tinyvit/tinyvit-5m_8xb256_in1k", "stages.2", edge=224),
    "tnt": Family("tnt/tnt-s-p16_16xb64_in1k", "layers.6", backbone=dict(img_size=64), cut=TWO_OUTPUTS),
    "twins": Family("twins/twins-pcpvt-small_8xb128_in1k", "stages.2.5"),
    "van": Family("van/van-tiny_8xb128_in1k", "blocks3.2"),
    "vgg": Family("vgg/vgg11_8xb32_in1k", "features.11", edge=224, whole=IN_BACKBONE),
    "vig": Family("vig/vig-tiny_8xb128_in1k", "blocks.6", edge=224),
    "vision_transformer": Family("vision_transformer/vit-base-p32_64xb64_in1k", "layers.1", backbone=VIT, head=OF_32),
    "wrn": Family("wrn/wide-resnet50_8xb32_in1k", "layer3"),
    "xcit": Family("xcit/xcit-nano-12-p16_8xb128_in1k", "xca_layers.6"),
    # Of the folders of self-supervised methods, those whose classifier is of no family above.
    "beit": Family("beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k", "layers.1", backbone=VIT, head=OF_32),
    "mixmim": Family(
        "mixmim/benchmarks/mixmim-base_8xb128-coslr-100e_in1k",
        "layers.1",
        backbone=dict(
            arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]), img_size=64, window_size=[2, 2, 2, 2]
        ),
        head=dict(in_channels=64),
    ),
    "mocov3": Family("mocov3/benchmarks/vit-small-p16_8xb128-linear-coslr-90e_in1k", "layers.6"),
}
# Folders of MMPretrain's configs that aren't in the list, and why.
NOT_HERE = {
    "lenet": "takes grey images, and our data side gives colour",
    "dinov2 glip itpn sam": "no classification: backbones alone, or pre-training",
    "arcface": "image retrieval",
    "blip blip2 chinese_clip flamingo llava minigpt4 ofa otter": "images with text",
    "barlowtwins beitv2 byol cae densecl eva mae maskfeat mff milan mocov2 simclr simmim simsiam spark swav": (
        "self-supervised pre-training; its classifiers are a ResNet, ConvNeXt, Swin, ViT or BEiT"
    ),
}
QUICK = ("resnet", "swin_transformer", "vision_transformer")


names = itertools.count()


def files(path: Path) -> list[Path]:
    """A config of MMPretrain's and all that it inherits."""
    bases = [(path.parent / base).resolve() for base in Config._get_base_files(str(path))]
    return [path, *(file for base in bases for file in files(base))]


def few_lines(name: str) -> list[str]:
    """What a user writes who takes a network of MMPretrain's: docs/networks.md."""
    path = MMPRETRAIN / f"{name}.py"
    theirs = Config.fromfile(path)
    bases = [
        str(ROOT / "configs" / "_base_" / base)
        for base in ("datasets/flowers_224_fixed.py", "schedules/adamw_8e.py", "default_runtime.py")
    ]
    model = [file for file in files(path) if re.search("^model = ", file.read_text(encoding="utf-8"), re.MULTILINE)]
    if model[1:] or model[0].parent.is_relative_to(path.parent):
        lines = [f"_base_ = {bases}", "from mmengine.hub import get_config"]
        lines += [f"model = get_config('mmpretrain::{name}.py').model"]
    else:
        lines = [f"_base_ = {[f'mmpretrain::{model[0].relative_to(MMPRETRAIN)}', *bases]}"]
    normalisation = {key: normalisation_of(theirs).get(key) for key in ("mean", "std", "to_rgb")}
    if normalisation != dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True):
        lines += [f"data_preprocessor = {normalisation}"]
    weights = [address for address, config in weights_and_configs() if config == f"{name}.py"]
    return [*lines, *(f"load_from = {address!r}" for address in weights[:1])]


def normalisation_of(config: Config) -> dict:
    return config.model.get("data_preprocessor") or config.data_preprocessor


def without_scope(part: Any) -> Any:
    """A part of a config as its own file has it; MMEngine notes where it inherited parts."""
    if isinstance(part, dict):
        return {key: without_scope(value) for key, value in part.items() if key != "_scope_"}
    return [without_scope(value) for value in part] if isinstance(part, (list, tuple)) else part


def written(family: Family, tmp_path: Path) -> Path:
    """The config of a user who takes the family's network."""
    path = tmp_path / "config.py"
    path.write_text("\n".join(few_lines(family.config)) + "\n", encoding="utf-8")
    return path


def shrink(config: Config, family: Family) -> Config:
    config.model.backbone.update(family.backbone)
    config.model.head.update(family.head)
    for dataset in datasets(config):
        for step in dataset["pipeline"]:
            step.update({key: family.edge for key in ("scale", "crop_size") if key in step})
    return config


def on_our_bases(family: Family, tmp_path: Path) -> Config:
    return shrink(load_config(written(family, tmp_path)), family)


every_family = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)


@every_family
def test_at_most_five_lines_train_any_network(name: str, dataset: Path, tmp_path: Path) -> None:
    family = FAMILIES[name]
    path = written(family, tmp_path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 5
    asked = TrainOptions(
        path,
        data=dataset,
        weights="none",
        work_dir=tmp_path / "run",
        cfg_options=[
            *(f"experiment_name=family{next(names)}", "train_cfg.max_epochs=1", "default_hooks.logger.interval=1"),
            *("train_dataloader.batch_size=20", "train_dataloader.num_workers=0", "val_dataloader.num_workers=0"),
        ],
    )
    theirs = Config.fromfile(MMPRETRAIN / f"{family.config}.py")
    ours = load_config(path)
    assert without_scope(ours.model) == without_scope(theirs.model)
    for key in ("mean", "std", "to_rgb"):
        assert normalisation_of(ours).get(key) == normalisation_of(theirs).get(key)

    outcome = train(shrink(configure(asked), family))
    assert outcome.best_epoch == 1 and 0 <= outcome.best_score <= 100
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    losses = [found["loss"] for found in map(json.loads, log.read_text().splitlines()) if "loss" in found]
    assert len(losses) == 2 and all(torch.tensor(losses).isfinite())


def rows_of(heading: str) -> dict[str, str]:
    """The second column of the page's table of that heading, by the names in the first."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = [line.split(" | ", 1) for line in table.splitlines()[2:]]
    return {name: text for names, text in rows for name in re.findall(r"\w+", names)}


def folder_of(family: Family) -> str:
    return family.config.partition("/")[0]


def test_the_page_says_what_the_lines_of_each_family_need() -> None:
    rows = rows_of("families")
    assert set(rows) == {folder_of(family) for family in FAMILIES.values()} - {"csra"}
    for name, family in FAMILIES.items():
        if name != "csra":
            row, lines = rows[folder_of(family)], few_lines(family.config)
            assert ("second form" in row) == any("get_config" in line for line in lines), name
            assert ("data_preprocessor" in row) == any(line.startswith("data_preprocessor") for line in lines), name
    assert {"csra", *" ".join(NOT_HERE).split()} <= set(rows_of("what"))


@every_family
def test_the_page_says_which_networks_take_one_size_only(name: str) -> None:
    family = FAMILIES[name]
    fixed = "flowers_224_fixed.py" in rows_of("families").get(folder_of(family), "")
    with DefaultScope.overwrite_default_scope("mmflowers"), torch.no_grad():
        model = MODELS.build(Config.fromfile(MMPRETRAIN / f"{family.config}.py").model).eval()
        assert takes_images_of(model, 224) == (name != "swin_transformer_v2")  # which the page says
        assert takes_images_of(model, 256) == (not fixed)


def takes_images_of(model: torch.nn.Module, edge: int) -> bool:
    try:
        model(torch.zeros(1, 3, edge, edge))
    except (RuntimeError, AssertionError):
        return False
    return True


def test_the_head_of_csra_is_refused_as_the_page_says() -> None:
    with DefaultScope.overwrite_default_scope("mmflowers"):
        model = MODELS.build(Config.fromfile(MMPRETRAIN / f"{FAMILIES['csra'].config}.py").model)
    with pytest.raises(InputError, match="any number of classes for a photo"):
        require_single_label(model)


def test_the_configs_on_the_page_are_of_weights_that_belong_to_them(tmp_path: Path) -> None:
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")
    texts = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(texts) == 2
    for text in texts:
        assert len(text.splitlines()) <= 5
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        config = load_config(tmp_path / "mine.py")
        theirs = Config.fromfile(MMPRETRAIN / dict(weights_and_configs())[config.load_from])
        assert without_scope(config.model) == without_scope(theirs.model)
        for key in ("mean", "std", "to_rgb"):
            assert config.data_preprocessor[key] == theirs.data_preprocessor[key]


@every_family
def test_any_network_learns_the_folders_classes_is_probed_and_frozen(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = on_our_bases(family, tmp_path)
    set_classes(config, CLASSES)
    with DefaultScope.overwrite_default_scope("mmflowers"):
        torch.manual_seed(0)
        model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
    samples = [DataSample().set_gt_label(label) for label in range(CLASSES)]
    pixels = torch.randint(0, 256, (CLASSES, 3, family.edge, family.edge), dtype=torch.uint8)
    data = model.data_preprocessor({"inputs": pixels, "data_samples": samples}, training=True)

    loss = model(**data, mode="loss")["loss"]
    loss.backward()
    assert loss.isfinite()
    if family.probe != "no linear layer":
        classifier = list(classifier_layers(model).values())[-1]
        assert classifier.out_features == CLASSES and classifier.weight.grad.any()

    model.eval()
    images = data["inputs"]
    check(lambda: FrozenNetwork(model), images, family.probe)
    check(lambda: FrozenBackbone(model), images, family.whole)
    check(lambda: FrozenStem(model, family.layer), images, family.cut)
    (scores,) = {sample.pred_score.shape for sample in model(images, samples, mode="predict")}
    assert scores == (CLASSES,)


@pytest.mark.parametrize("name", ["vgg", "inception_v3", "convnext"])
def test_the_checks_find_no_argument_that_a_network_does_not_take(name: str, tmp_path: Path) -> None:
    config = on_our_bases(FAMILIES[name], tmp_path)
    set_classes(config, CLASSES)
    assert not list(keys.arguments(Case(config)))


def test_a_network_that_takes_no_number_of_classes_is_refused(tmp_path: Path) -> None:
    config = on_our_bases(FAMILIES["resnet"], tmp_path)
    config.model.head = dict(type="ClsHead")
    with pytest.raises(InputError, match="neither the head ClsHead nor the backbone ResNet takes num_classes"):
        set_classes(config, CLASSES)


def test_the_classes_are_set_wherever_they_are_counted(tmp_path: Path) -> None:
    config = on_our_bases(FAMILIES["resnest"], tmp_path)
    config.model.train_cfg = dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="Other", num_classes=1000)])
    del config.data_preprocessor["num_classes"]  # as in MMPretrain's recipes for some networks
    assert config.model.head.loss.num_classes == 1000
    set_classes(config, CLASSES)
    assert config.model.head.num_classes == config.model.head.loss.num_classes == CLASSES
    assert config.data_preprocessor.num_classes == CLASSES
    mixup, other = config.model.train_cfg.augments
    assert other.num_classes == CLASSES and "num_classes" not in mixup
    assert "num_classes" not in config.model.backbone


@torch.no_grad()
def check(make, images: torch.Tensor, refused: str) -> None:
    def made_and_checked() -> FrozenPart:
        frozen_part = make()
        frozen_part.verify(images)
        return frozen_part

    if refused:
        with pytest.raises(InputError, match=refused):
            made_and_checked()
    else:
        assert made_and_checked()(images).shape[0] == CLASSES


def test_every_folder_of_mmpretrains_configs_is_in_the_list_or_has_a_reason() -> None:
    there = {path.name for path in MMPRETRAIN.iterdir() if path.is_dir()} - {"_base_"}
    tried = {family.config.partition("/")[0] for family in FAMILIES.values()}
    assert there == tried | set(" ".join(NOT_HERE).split())


@pytest.mark.parametrize("kind", [FrozenNetwork, FrozenBackbone])
def test_a_refusal_is_one_line_that_names_head_and_way_out(kind: type[FrozenPart], tmp_path: Path) -> None:
    config = on_our_bases(FAMILIES["deit, distilled"], tmp_path)
    set_classes(config, CLASSES)
    with DefaultScope.overwrite_default_scope("mmflowers"):
        model = MODELS.build(config.model).eval()
    with torch.no_grad(), pytest.raises(InputError, match=r"head.* · hint: .*freeze") as caught:
        kind(model).verify(torch.randn(2, 3, 64, 64))
    assert "\n" not in str(caught.value)
