# Freed memory stays the process's, and NHWC in memory: what is quick hangs together.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

custom_hooks = [dict(type="KeepMemoryHook"), dict(type="ChannelsLastHook")]
