# resnet50_flowers_fast.py in float32, to measure it as on a CPU without bfloat16.
_base_ = "../configs/resnet50_flowers_fast.py"

optim_wrapper = dict(_delete_=True, type="OptimWrapper", optimizer={{_base_.optim_wrapper.optimizer}})
