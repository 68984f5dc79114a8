"""What MMEngine's Runner lacks: safe loading, weights of any origin, whole checkpoints, curves.

Importing this registers what configs name: hooks, loops, the optim wrapper, trackers.
"""

from mmflowers.engine.hooks import BestAndLastHook, ChannelsLastHook, CurvesHook, FastDepthwiseHook
from mmflowers.engine.loops import ExactTrainLoop, StoppableValLoop
from mmflowers.engine.optim import BFloat16OptimWrapper
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.tracking import TrackerVisBackend

__all__ = [
    "BFloat16OptimWrapper",
    "BestAndLastHook",
    "ChannelsLastHook",
    "CurvesHook",
    "ExactTrainLoop",
    "FastDepthwiseHook",
    "FlowersRunner",
    "StoppableValLoop",
    "TrackerVisBackend",
]
