# The data side: a dataset folder as tools/prepare_flowers.py writes it, 224 px to train on, 256 px to test on.

default_scope = 'mmflowers'

# ImageNet's mean and std, as most weights of OpenMMLab expect; a recipe with other weights overrides them.
data_preprocessor = dict(
    num_classes=5, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

data_root = 'flower_dataset'

# Crops keep at least 30 % of the photo: ImageNet's 8 % often shows a leaf and no flower, and a short fine-tuning
# has no time to average that out.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.3, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
# Flowers look larger in random crops than in the centre crop of a test, so a test at about 1.15 times the training
# resolution sees them at the size they were learned at (Touvron et al., "Fixing the train-test resolution
# discrepancy", 2019).
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=288, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]

loader = dict(num_workers=2, persistent_workers=True)  # workers persist; augmentation still differs in each epoch
train_dataloader = dict(
    batch_size=32,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='FlowersDataset', data_root=data_root, ann_file='train.txt', pipeline=train_pipeline),
    **loader)
val_dataloader = dict(
    batch_size=32,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='FlowersDataset', data_root=data_root, ann_file='val.txt', pipeline=test_pipeline),
    **loader)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
