# ResNet-101: the recipe of EfficientNet-Lite0 on the larger sister of ResNet-50.
#
#   python tools/train.py configs/resnet101_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/resnet101.py', '_base_/datasets/flowers_224.py',
    '_base_/schedules/sgd_8e.py', '_base_/default_runtime.py'
]

model = dict(
    head=dict(
        num_classes=5,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet101_8xb32_in1k_20210831-539c63f8.pth'
