# ResNet-34: the recipe of EfficientNet-Lite0 on a plain network of 21 million parameters.
#
#   python tools/train.py configs/resnet34_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/resnet34.py', '_base_/datasets/flowers_224.py',
    '_base_/schedules/sgd_8e.py', '_base_/default_runtime.py'
]

model = dict(
    head=dict(
        num_classes=5,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth'
