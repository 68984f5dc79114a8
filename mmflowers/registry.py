"""Registries of mmflowers, each a child of MMPretrain's: the scope ``mmflowers`` has the types of both.

MMEngine looks a type up in the registry of the default scope, then in its parents, but imports only the modules that
the first one names (``locations``). So each names those of MMPretrain too.
"""

from __future__ import annotations

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import Registry
from mmpretrain import registry as mmpretrain

# MMEngine's table of the packages that `_base_ = 'package::folder/config.py'` may name. It looks for `.mim` in the
# folder of what stands here, and finds that of an editable installation only by a module.
MODULE2PACKAGE["mmflowers"] = __name__


def _child(name: str, *locations: str) -> Registry:
    """Return a registry of mmflowers below MMPretrain's of that name."""
    parent = getattr(mmpretrain, name)
    return Registry(parent.name, parent=parent, scope="mmflowers", locations=[*parent._locations, *locations])


DATASETS = _child("DATASETS", "mmflowers.datasets.flowers", "mmflowers.datasets.seeded")
DATA_SAMPLERS = _child("DATA_SAMPLERS", "mmflowers.datasets.seeded")
TRANSFORMS = _child("TRANSFORMS")
MODELS = _child("MODELS", "mmflowers.models.preprocessing", "mmflowers.speed.averaging", "mmflowers.speed.losses")
MODEL_WRAPPERS = _child("MODEL_WRAPPERS")
WEIGHT_INITIALIZERS = _child("WEIGHT_INITIALIZERS", "mmflowers.weights.init_cfg")
BATCH_AUGMENTS = _child("BATCH_AUGMENTS")
TASK_UTILS = _child("TASK_UTILS")
OPTIMIZERS = _child("OPTIMIZERS")
OPTIM_WRAPPERS = _child("OPTIM_WRAPPERS", "mmflowers.speed.precision")
OPTIM_WRAPPER_CONSTRUCTORS = _child("OPTIM_WRAPPER_CONSTRUCTORS")
PARAM_SCHEDULERS = _child("PARAM_SCHEDULERS")
RUNNERS = _child("RUNNERS", "mmflowers.engine.runner")
RUNNER_CONSTRUCTORS = _child("RUNNER_CONSTRUCTORS")
LOOPS = _child(
    "LOOPS",
    *("mmflowers.engine.loops", "mmflowers.speed.loops", "mmflowers.frozen.loops", "mmflowers.frozen.probe"),
)
HOOKS = _child("HOOKS", "mmflowers.engine.hooks", "mmflowers.engine.record", "mmflowers.speed.hooks")
LOG_PROCESSORS = _child("LOG_PROCESSORS")
METRICS = _child("METRICS", "mmflowers.evaluation.metrics")
EVALUATORS = _child("EVALUATORS")
VISUALIZERS = _child("VISUALIZERS")
VISBACKENDS = _child("VISBACKENDS", "mmflowers.engine.tracking")
# MMPretrain has none of these.
FUNCTIONS = Registry("Function", parent=MMENGINE_FUNCTIONS, scope="mmflowers", locations=["mmflowers.datasets.seeded"])
