"""Processes of a distributed run: their launchers, and how they join."""

from __future__ import annotations

import os

import torch
from mmengine.device import get_device

from mmflowers.utils.errors import InputError

# How processes are started for each launcher, and the environment variables that each of them then has.
LAUNCHERS = {
    "pytorch": ("torchrun --nproc-per-node 2", ("RANK", "LOCAL_RANK")),
    "slurm": ("srun python", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST")),
    "mpi": ("mpirun -n 2 -x MASTER_ADDR=… python", ("OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_ADDR")),
}
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}


def is_first_process(launcher: str) -> bool:
    """Whether this is the main process of a run, also before the processes have joined."""
    return launcher == "none" or os.environ.get(RANKS[launcher], "0") == "0"


def join_process_group(launcher: str) -> None:
    """Join torchrun's processes with gloo if there is no GPU; with GPUs MMEngine joins them itself.

    Raises:
        InputError: This process wasn't started by that launcher, or there is no GPU and it isn't torchrun.
    """
    if launcher == "none" or torch.distributed.is_initialized():
        return
    starts, variables = LAUNCHERS[launcher]
    missing = [name for name in variables if name not in os.environ]
    if missing:
        hint = f"start it by {starts} tools/train.py … --launcher {launcher}"
        raise InputError(f"--launcher {launcher}: {', '.join(missing)} not set in the environment", hint)
    if get_device() == "cpu":
        if launcher != "pytorch":
            hint = f"on CPUs: {LAUNCHERS['pytorch'][0]} tools/train.py … --launcher pytorch"
            raise InputError(f"--launcher {launcher} needs GPUs, and there is none here", hint)
        torch.distributed.init_process_group("gloo")
