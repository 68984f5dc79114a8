# Exercise 1 as fast as the machine allows: the recipe of resnet50_flowers.py with all pieces of _base_/fast.py.
#
#   python tools/train.py configs/resnet50_flowers_fast.py
#   python tools/test.py
#
# --fast gives the same pieces to any config. What each gains: docs/performance.md.

_base_ = ['./resnet50_flowers.py', '_base_/fast.py']

train_dataloader = {{_base_.fast.loader}}
val_dataloader = {{_base_.fast.loader}}
test_dataloader = {{_base_.fast.loader}}
data_preprocessor = {{_base_.fast.data_preprocessor}}
optim_wrapper = {{_base_.fast.optim_wrapper}}
train_cfg = {{_base_.fast.train_cfg}}
val_cfg = {{_base_.fast.val_cfg}}
default_hooks = {{_base_.fast.default_hooks}}
custom_hooks = {{_base_.fast.custom_hooks}}
env_cfg = {{_base_.fast.env_cfg}}
