# Activations that would be copied before they are overwritten write elsewhere.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

custom_hooks = [dict(type="OutOfPlaceHook")]
