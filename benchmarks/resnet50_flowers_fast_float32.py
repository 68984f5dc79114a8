# What is left of resnet50_flowers_fast.py on a processor without bfloat16, on one that has it.
_base_ = "../configs/resnet50_flowers_fast.py"

optim_wrapper = dict(_delete_=True, type="OptimWrapper", optimizer={{_base_.optim_wrapper.optimizer}})
