# EfficientNet-Lite0 with progressive resizing: two epochs each at 128, 160, 192 and 224 px. For --fast.
_base_ = "../configs/efficientnet_lite0_flowers.py"

custom_hooks = [
    dict(type="CurvesHook"),
    dict(type="ProgressiveResizeHook", sizes={1: 128, 3: 160, 5: 192, 7: 224}),
]
