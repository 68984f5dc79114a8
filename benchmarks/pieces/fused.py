# One kernel for the update of all parameters.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

optim_wrapper = dict(optimizer=dict(fused=True))
