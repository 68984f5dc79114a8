# Freed memory stays the process's.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

custom_hooks = [dict(type="KeepMemoryHook")]
