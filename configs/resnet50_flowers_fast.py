# Exercise 1 as fast as the machine allows: the recipe of resnet50_flowers.py, piece by piece relieved of its waiting.
#
#   python tools/train.py configs/resnet50_flowers_fast.py
#   python tools/test.py
#
# Each piece is a line that any config can take; --fast gives all of them to any config. What each gains:
# docs/performance.md.

_base_ = './resnet50_flowers.py'

# Photos are decoded once. With them at hand a loader needs no worker, so both processors are the training's.
loader = dict(num_workers=0, persistent_workers=False, dataset=dict(cache=True))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader

# RandomResizedCrop and RandomFlip of the pipeline are computed for whole batches, on the device.
data_preprocessor = dict(type='FlowersDataPreprocessor')

# bfloat16 where the hardware has it: no loss scaling. One kernel for all parameters' update.
optim_wrapper = dict(type='BFloat16OptimWrapper', where_fast=True, optimizer=dict(fused=True))

# The loss is looked at every 50 iterations: every look waits for the GPU. Validation has the training's precision.
train_cfg = dict(loss_interval=50)
val_cfg = dict(type='FastValLoop')
default_hooks = dict(
    runtime_info=dict(type='LazyRuntimeInfoHook', interval=50),
    logger=dict(interval=50))

# NHWC in memory, which convolutions are quickest in on CPUs and on GPUs with tensor cores. Two pieces for networks
# other than a ResNet: a quick backward pass of depthwise convolutions, and activations that aren't copied before they
# are overwritten. On a CPU, memory that is freed stays the process's: the next step wants it again. On a GPU, the
# backbone's kernels are launched as two graphs, not one by one.
custom_hooks = [
    dict(type='CurvesHook'),
    dict(type='ChannelsLastHook'),
    dict(type='FastDepthwiseHook'),
    dict(type='OutOfPlaceHook'),
    dict(type='KeepMemoryHook'),
    dict(type='CUDAGraphHook'),
]
env_cfg = dict(cudnn_benchmark=True)
