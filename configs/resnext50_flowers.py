# ResNeXt-50 (32x4d): the recipe of EfficientNet-Lite0 on a ResNet-50 with grouped convolutions.
#
#   python tools/train.py configs/resnext50_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/resnext50_32x4d.py', '_base_/datasets/flowers_224.py',
    '_base_/schedules/sgd_8e.py', '_base_/default_runtime.py'
]

model = dict(
    head=dict(
        num_classes=5,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

load_from = 'https://download.openmmlab.com/mmclassification/v0/resnext/resnext50_32x4d_b32x8_imagenet_20210429-56066e27.pth'
