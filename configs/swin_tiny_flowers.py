# Swin-T: AdamW, tested at 224 px, which its windows of 7 are made for.
#
#   python tools/train.py configs/swin_tiny_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',
    '_base_/datasets/flowers_224_fixed.py', '_base_/schedules/adamw_8e.py',
    '_base_/default_runtime.py'
]

# Without Mixup and CutMix, as in convnext_tiny_flowers.py.
model = dict(head=dict(num_classes=5), train_cfg=None)

# No decay of position tables either, as Swin was trained.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.relative_position_bias_table': dict(decay_mult=0.0)}))

load_from = 'https://download.openmmlab.com/mmclassification/v0/swin-transformer/swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth'
