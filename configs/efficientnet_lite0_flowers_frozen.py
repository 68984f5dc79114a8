# EfficientNet-Lite0 in minutes on a laptop: its last third is trained, on feature maps that are computed once.
#
#   python tools/train.py configs/efficientnet_lite0_flowers_frozen.py
#   python tools/test.py
#
# Results, and how long it takes beside the whole recipe: docs/performance.md.

_base_ = './efficientnet_lite0_flowers.py'

# Two augmented views of each photo go through blocks 0 to 4, about two thirds of the arithmetic, which then never has
# to be done again, least of all backwards. One epoch warms up, two fall by a cosine. Views and epochs were chosen on a
# split of the training photos alone: 95.6 % of 457 there, as with four views and four epochs.
train_cfg = dict(
    _delete_=True, type='FrozenTrainLoop', freeze_to='blocks.4', views=2, max_epochs=3, loss_interval=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=3, T_max=2, eta_min=0.0, convert_to_iter_based=True),
]

# The fast pieces, as in resnet50_flowers_fast.py.
loader = dict(num_workers=0, persistent_workers=False, dataset=dict(cache=True))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
data_preprocessor = dict(type='FlowersDataPreprocessor')
model = dict(head=dict(loss=dict(type='FlowersLabelSmoothLoss')))
optim_wrapper = dict(type='BFloat16OptimWrapper', where_fast=True, optimizer=dict(fused=True))
val_cfg = dict(type='FastValLoop')
default_hooks = dict(
    runtime_info=dict(type='LazyRuntimeInfoHook', interval=50),
    logger=dict(interval=50))
custom_hooks = [
    dict(type='CurvesHook'),
    dict(type='ChannelsLastHook'),
    dict(type='FastDepthwiseHook'),
    dict(type='OutOfPlaceHook'),
    dict(type='KeepMemoryHook'),
    dict(type='CUDAGraphHook'),
]
env_cfg = dict(cudnn_benchmark=True)
