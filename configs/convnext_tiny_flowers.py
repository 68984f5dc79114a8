# ConvNeXt-T: AdamW, from weights of ImageNet-21k that were fine-tuned on ImageNet-1k.
#
#   python tools/train.py configs/convnext_tiny_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/convnext/convnext-tiny.py', '_base_/datasets/flowers_224.py',
    '_base_/schedules/adamw_8e.py', '_base_/default_runtime.py'
]

# Without Mixup and CutMix: ConvNeXt's authors switch both off for fine-tuning (TRAINING.md of their repository).
model = dict(head=dict(num_classes=5), train_cfg=None)

load_from = 'https://download.openmmlab.com/mmclassification/v0/convnext/convnext-tiny_in21k-pre_3rdparty_in1k_20221219-7501e534.pth'
