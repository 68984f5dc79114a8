# EfficientNet-Lite0 in minutes on a laptop: its last third is trained, on feature maps that are computed once.
#
#   python tools/train.py configs/efficientnet_lite0_flowers_frozen.py
#   python tools/test.py
#
# Results, and how long it takes beside the whole recipe: docs/performance.md.

_base_ = ['./efficientnet_lite0_flowers.py', '_base_/fast.py']

# Two augmented views of each photo go through blocks 0 to 4, about two thirds of the arithmetic, which then never has
# to be done again, least of all backwards. One epoch warms up, two fall by a cosine. Views and epochs were chosen on a
# split of the training photos alone: 95.6 % of 457 there, as with four views and four epochs.
train_cfg = dict(
    _delete_=True, type='FrozenTrainLoop', freeze_to='blocks.4', views=2, max_epochs=3, loss_interval=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=3, T_max=2, eta_min=0.0, convert_to_iter_based=True),
]

# The pieces of --fast. loss_interval is in train_cfg above, and the loss has a form of its own.
train_dataloader = {{_base_.fast.loader}}
val_dataloader = {{_base_.fast.loader}}
test_dataloader = {{_base_.fast.loader}}
data_preprocessor = {{_base_.fast.data_preprocessor}}
model = dict(head=dict(loss=dict(type='FlowersLabelSmoothLoss')))
optim_wrapper = {{_base_.fast.optim_wrapper}}
val_cfg = {{_base_.fast.val_cfg}}
default_hooks = {{_base_.fast.default_hooks}}
custom_hooks = {{_base_.fast.custom_hooks}}
env_cfg = {{_base_.fast.env_cfg}}
