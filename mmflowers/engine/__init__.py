"""What MMEngine's Runner lacks: safe loading, weights of any origin, whole checkpoints, curves.

Importing this registers what configs name: hooks, loops, the optim wrapper, trackers.
"""

from mmflowers.engine.frozen import FrozenTrainLoop, LinearProbeLoop
from mmflowers.engine.hooks import (
    BestAndLastHook,
    ChannelsLastHook,
    CUDAGraphHook,
    CurvesHook,
    FastDepthwiseHook,
    KeepMemoryHook,
    LazyRuntimeInfoHook,
    OutOfPlaceHook,
    ProgressiveResizeHook,
)
from mmflowers.engine.loops import ExactTrainLoop, FastTestLoop, FastValLoop, StoppableValLoop
from mmflowers.engine.optim import BFloat16OptimWrapper
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.tracking import TrackerVisBackend
from mmflowers.models.averaging import ForeachEMA
from mmflowers.models.losses import FlowersLabelSmoothLoss
from mmflowers.models.preprocessing import FlowersDataPreprocessor

__all__ = [
    "BFloat16OptimWrapper",
    "BestAndLastHook",
    "CUDAGraphHook",
    "ChannelsLastHook",
    "CurvesHook",
    "ExactTrainLoop",
    "FastDepthwiseHook",
    "FastTestLoop",
    "FastValLoop",
    "FlowersDataPreprocessor",
    "FlowersLabelSmoothLoss",
    "FlowersRunner",
    "ForeachEMA",
    "FrozenTrainLoop",
    "KeepMemoryHook",
    "LazyRuntimeInfoHook",
    "LinearProbeLoop",
    "OutOfPlaceHook",
    "ProgressiveResizeHook",
    "StoppableValLoop",
    "TrackerVisBackend",
]
