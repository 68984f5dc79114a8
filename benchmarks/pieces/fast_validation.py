# Norms folded into convolutions, results taken off the device once.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

val_cfg = dict(type="FastValLoop")
