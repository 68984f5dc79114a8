"""Every family of MMPretrain's classifiers on our bases: the folder's classes, a training step, a probe, a cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import mmpretrain
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mmflowers.checks import keys
from mmflowers.checks.run import Case
from mmflowers.engine.configuration import load_config, set_classes
from mmflowers.frozen.parts import FrozenBackbone, FrozenNetwork, FrozenPart, FrozenStem
from mmflowers.models.classifier import classifier_layers
from mmflowers.registry import MODELS
from mmflowers.utils.errors import InputError

MMPRETRAIN = Path(mmpretrain.__file__).parent / ".mim" / "configs"
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
QUICK = (
    "convnext",
    "mobilenet_v3",
    "resnet",
    "swin_transformer",
    "vision_transformer",
    "deit, distilled",
)


def on_our_bases(family: Family, tmp_path: Path) -> Config:
    """The config of a user who takes MMPretrain's network, and the normalisation that is written beside it."""
    model = Config.fromfile(MMPRETRAIN / f"{family.config}.py").model
    model.backbone.update(family.backbone)
    model.head.update(family.head)
    bases = [str(ROOT / "configs" / "_base_" / name) for name in ("data.py", "finetune.py", "runtime.py")]
    normalisation = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
    text = f"_base_ = {bases!r}\ndata_preprocessor = {normalisation!r}\nmodel = {model.to_dict()!r}\n"
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "config.py")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
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
    assert config.model.head.loss.num_classes == 1000 and "num_classes" not in config.data_preprocessor
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
