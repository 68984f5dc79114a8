# ViT-B/16: AdamW, from weights of ImageNet-21k (AugReg) that were fine-tuned on ImageNet-1k at 384 px. Here images have
# 224 px, a third of the arithmetic; the position embeddings are interpolated when the weights are loaded.
#
#   python tools/train.py configs/vit_base_p16_flowers.py
#   python tools/test.py
#
# Results: not yet measured, see docs/results.md.

_base_ = [
    'mmpretrain::_base_/models/vit-base-p16.py', '_base_/datasets/flowers_224_fixed.py',
    '_base_/schedules/adamw_8e.py', '_base_/default_runtime.py'
]

# These weights were trained on pixels scaled to -1…1.
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

model = dict(head=dict(num_classes=5))

# No decay of the class token and the position embeddings, as ViTs are trained in MMPretrain.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0)
        }))

load_from = 'https://download.openmmlab.com/mmclassification/v0/vit/finetune/vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth'
