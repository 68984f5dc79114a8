# Autocast where the hardware has bfloat16; elsewhere this is the recipe itself.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

optim_wrapper = dict(type="BFloat16OptimWrapper", where_fast=True)
custom_hooks = [dict(type="FastDepthwiseHook")]
