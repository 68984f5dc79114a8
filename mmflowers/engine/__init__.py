"""What MMEngine's Runner lacks: safe loading, weights of any origin, whole checkpoints, curves.

Importing this registers what configs name: the hooks and the optim wrapper.
"""

from mmflowers.engine.hooks import BestAndLastHook, ChannelsLastHook, CurvesHook, FastDepthwiseHook
from mmflowers.engine.loops import ExactTrainLoop, StoppableValLoop
from mmflowers.engine.optim import BFloat16OptimWrapper
from mmflowers.engine.runner import FlowersRunner

__all__ = [
    "BFloat16OptimWrapper",
    "BestAndLastHook",
    "ChannelsLastHook",
    "CurvesHook",
    "ExactTrainLoop",
    "FastDepthwiseHook",
    "FlowersRunner",
    "StoppableValLoop",
]
