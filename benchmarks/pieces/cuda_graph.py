# The backbone's forward and backward pass launched as two CUDA graphs; on a GPU alone. Graphs want the losses and
# labels left on the device to show what they gain: the host must run ahead.
_base_ = "lazy_losses.py"

custom_hooks = [dict(type="CUDAGraphHook")]
