# The moving average in a handful of kernels.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

custom_hooks = [dict(type="EMAHook", ema_type="ForeachEMA")]
