# Fine-tuning for transformers and ConvNeXt: AdamW, an epoch of warm-up, then one cosine down to zero.

# Weight decay 0.05, and none for norms, biases and other vectors: as Swin and ConvNeXt were trained (Liu et al., 2021
# and 2022; MMPretrain's imagenet_bs1024_adamw_swin.py). Their rate of 0.001 at batch 1024 is 3e-5 at batch 32 if it is
# scaled linearly, and 1.8e-4 if by the square root. 1e-4 lies between. It wasn't tuned.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=8, T_max=7, eta_min=0.0, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
val_cfg = dict()
test_cfg = dict()
