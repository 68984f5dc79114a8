"""Runs in place of ``python`` when a page's commands are tested: the same command with less to do, by the real one.

What needs the internet gets rendered flowers, a training one epoch on small images, and ``python -m pytest`` nothing at
all, as it is this test.
"""

from __future__ import annotations

import subprocess
import sys

PHOTOS = "8"  # a class
QUICK = ("train_cfg.max_epochs=1", "train_dataloader.num_workers=0", "val_dataloader.num_workers=0")


def reduced(arguments: list[str]) -> list[str]:
    """The arguments of a python command with less to do."""
    tool = next((word.rpartition("/")[2] for word in arguments if word.endswith(".py")), "")
    if tool == "prepare_flowers.py":
        if "--rendered" in arguments:
            at = arguments.index("--rendered") + 1
            return [*arguments[:at], PHOTOS, *arguments[at + 1 :]]
        return arguments if "--source" in arguments else [*arguments, "--rendered", PHOTOS]
    if tool == "train.py":
        options = [] if "--cfg-options" in arguments else ["--cfg-options"]
        at = arguments.index("--cfg-options") + 1 if "--cfg-options" in arguments else len(arguments)
        while at < len(arguments) and not arguments[at].startswith("--"):
            at += 1
        laptop = [] if "--laptop" in arguments else ["--laptop"]
        return [*arguments[:at], *options, *QUICK, *laptop, *arguments[at:]]
    if tool == "train_torch.py":
        return [*arguments, "--epochs", "1", "--workers", "0"]
    return arguments


if __name__ == "__main__":
    if sys.argv[1:3] != ["-m", "pytest"]:
        sys.exit(subprocess.run([sys.executable, *reduced(sys.argv[1:])], check=False).returncode)
