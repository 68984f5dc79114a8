# EfficientNet-B0: the recipe of EfficientNet-Lite0, with Google's AutoAugment weights as OpenMMLab converted them.
#
#   python tools/train.py configs/efficientnet_b0_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/efficientnet_b0.py', '_base_/datasets/flowers_224.py',
    '_base_/schedules/sgd_8e.py', '_base_/default_runtime.py'
]

model = dict(
    head=dict(
        num_classes=5,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

load_from = 'https://download.openmmlab.com/mmclassification/v0/efficientnet/efficientnet-b0_3rdparty_8xb32-aa_in1k_20220119-8d939117.pth'
