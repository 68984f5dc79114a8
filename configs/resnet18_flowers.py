# Exercise 2's recipe of the report through MMEngine's Runner: ResNet-18, SGD, a step every 7 epochs.
#
#   python tools/train.py configs/resnet18_flowers.py
#   python tools/test.py
#
# The report (plain PyTorch, as tools/train_torch.py): 92.81 %. Ours: docs/results.md.

_base_ = ['_base_/datasets/flowers_224.py', '_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3, ), style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=5, in_channels=512, loss=dict(type='CrossEntropyLoss'), topk=(1, )))

load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'

# torchvision's own transforms, with the constants of tools/train_torch.py. Rotation and affine default to the nearest
# pixel in torchvision, which leaves edges jagged that a val photo never shows.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='torchvision/RandomResizedCrop', size=224),
    dict(type='torchvision/RandomHorizontalFlip'),
    dict(type='torchvision/ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
    dict(type='torchvision/RandomRotation', degrees=15, interpolation='bilinear'),
    dict(
        type='torchvision/RandomAffine',
        degrees=0,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        shear=5,
        interpolation='bilinear'),
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The rate falls tenfold after 7, 14 and 21 of 25 epochs.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001, momentum=0.9))
param_scheduler = dict(type='StepLR', by_epoch=True, step_size=7, gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=25, val_interval=1)
val_cfg = dict()
test_cfg = dict()
