# MobileNetV3 (large): the recipe of EfficientNet-Lite0, with torchvision's weights as OpenMMLab converted them.
#
#   python tools/train.py configs/mobilenet_v3_large_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/mobilenet_v3/mobilenet_v3_large_imagenet.py',
    '_base_/datasets/flowers_224.py', '_base_/schedules/sgd_8e.py', '_base_/default_runtime.py'
]

model = dict(
    head=dict(
        num_classes=5,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

load_from = 'https://download.openmmlab.com/mmclassification/v0/mobilenet_v3/convert/mobilenet_v3_large-3ea3c186.pth'
