# MMEngine's moving average of the weights; to be compared with ema_foreach.py.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

custom_hooks = [dict(type="EMAHook")]
