# flowers_224.py for networks that take images of one size only, or classify best at it: tested at 224 px as well.
# These are networks with windows or position embeddings (Swin, ViT, MLP-Mixer).

_base_ = 'flowers_224.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
