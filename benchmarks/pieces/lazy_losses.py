# No result is read off the device but every 50 iterations.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

model = dict(head=dict(loss=dict(type="FlowersLabelSmoothLoss")))
train_cfg = dict(loss_interval=50)
default_hooks = dict(runtime_info=dict(type="LazyRuntimeInfoHook", interval=50), logger=dict(interval=50))
