# The pieces of --fast, each a value that a recipe assigns: `val_cfg = {{_base_.fast.val_cfg}}`. They are under one key
# because MMEngine takes no key from two bases. What each gains: docs/performance.md.

fast = dict(
    # Photos are decoded once. A loader then needs no workers, which leaves all processors to the training.
    loader=dict(num_workers=0, persistent_workers=False, dataset=dict(cache=True)),

    # RandomResizedCrop and RandomFlip of the pipeline are computed for whole batches, on the device.
    data_preprocessor=dict(type='FlowersDataPreprocessor'),

    # bfloat16 where the hardware has it: no loss scaling. One kernel for all parameters' update.
    optim_wrapper=dict(type='BFloat16OptimWrapper', where_fast=True, optimizer=dict(fused=True)),

    # The loss is read every 50 iterations: every read waits for the GPU. Validation has the training's precision.
    train_cfg=dict(loss_interval=50),
    val_cfg=dict(type='FastValLoop'),
    default_hooks=dict(
        runtime_info=dict(type='LazyRuntimeInfoHook', interval=50),
        logger=dict(interval=50)),

    # NHWC in memory, which is the fastest order for convolutions on CPUs and on GPUs with tensor cores. Two pieces for
    # networks other than a ResNet: a faster backward pass of depthwise convolutions, and activations that aren't
    # copied before they are overwritten. On a CPU, freed memory stays with the process: the next step needs it again.
    # On a GPU, the backbone's kernels are launched as two graphs, not one by one. Lists aren't merged, so this one
    # repeats the CurvesHook of default_runtime.py.
    custom_hooks=[
        dict(type='CurvesHook'),
        dict(type='ChannelsLastHook'),
        dict(type='FastDepthwiseHook'),
        dict(type='OutOfPlaceHook'),
        dict(type='KeepMemoryHook'),
        dict(type='CUDAGraphHook'),
    ],
    env_cfg=dict(cudnn_benchmark=True))
