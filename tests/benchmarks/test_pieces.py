"""benchmarks/pieces: what `make bench-pieces` measures one by one is what --fast does."""

from __future__ import annotations

import runpy
from pathlib import Path

import mmflowers.engine  # noqa: F401  registers
from mmflowers.engine import configuration, options

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs" / "efficientnet_lite0_flowers.py"
PIECES = sorted((ROOT / "benchmarks" / "pieces").glob("*.py"))
NOT_PART = {"ema", "ema_foreach", "keep_memory_channels_last"}  # of --fast; or a pair of others


def test_all_pieces_together_are_the_fast_recipe() -> None:
    together = configuration.load_config(BASE)
    hooks = list(together.custom_hooks)
    for path in PIECES:
        piece = {name: value for name, value in runpy.run_path(str(path)).items() if not name.startswith("_")}
        assert configuration.load_config(path)._cfg_dict != configuration.load_config(BASE)._cfg_dict
        if path.stem not in NOT_PART:
            hooks += piece.pop("custom_hooks", [])
            together.merge_from_dict({name: value for name, value in piece.items() if name != "loader"})
    fast = configuration.load_config(BASE)
    options.make_fast(fast)
    configuration.disable_idle_workers(fast)
    assert sorted(map(str, hooks)) == sorted(map(str, fast.custom_hooks))
    parts = ("model", "data_preprocessor", "optim_wrapper", "train_cfg", "val_cfg", "default_hooks", "env_cfg")
    for key in (*parts, *configuration.LOADERS):
        assert together[key] == fast[key], key
