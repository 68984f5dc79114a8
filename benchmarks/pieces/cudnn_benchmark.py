# The quickest convolution of several, tried out at the first batch of a shape; on a GPU alone.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

env_cfg = dict(cudnn_benchmark=True)
