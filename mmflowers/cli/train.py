"""Train a classifier on a dataset folder, on a GPU if there is one.

examples:
  python tools/train.py configs/resnet50_flowers.py
  python tools/train.py configs/efficientnet_lite0_flowers.py --amp --data my_dataset
  python tools/train.py configs/resnet50_flowers.py --resume
  python tools/train.py configs/resnet50_flowers.py --track tensorboard --track mlflow
  torchrun --nproc-per-node 2 tools/train.py configs/resnet50_flowers.py --launcher pytorch
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from mmflowers.cli.parser import Parser, natural
from mmflowers.cli.process import typed
from mmflowers.utils.errors import Problem
from mmflowers.utils.terminal import importing

if TYPE_CHECKING:
    from mmengine.config import Config


def arguments() -> Parser:
    """Return the parser of the training options, which ``benchmarks/benchmark.py train`` uses too."""
    parser = Parser(description=__doc__)
    parser.add_argument("config", help="config file, or the name of a shipped config")
    parser.add_argument("--data", metavar="DIR", help="dataset folder (default: the config's, flower_dataset)")
    parser.add_argument(
        "--weights",
        metavar="FILE|none",
        help="pretrained weights with the key names of OpenMMLab, torchvision or timm; none: from scratch "
        "(default: the config's)",
    )
    parser.add_argument("--work-dir", metavar="DIR", help="output folder (default: work_dirs/<config>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="resume from last.pth, or from CHECKPOINT",
    )
    parser.add_argument(
        "--amp", action="store_true", help="bfloat16 and channels-last: faster, on GPUs and on new CPUs"
    )
    parser.add_argument("--seed", type=natural, metavar="N", help="random seed (default: the config's, 0)")
    parser.add_argument("--laptop", action="store_true", help="a short run to try it out: 3 epochs, smaller images")
    parser.add_argument(
        "--fast", action="store_true", help="the same recipe, with photos decoded once and augmented on the device"
    )
    parser.add_argument(
        "--freeze-to",
        metavar="LAYER",
        help="train only the layers after this one (layer3, blocks.4; backbone: head only), on precomputed features",
    )
    parser.add_argument(
        "--views", type=int, default=4, metavar="N", help="augmented views per photo for --freeze-to (default: 4)"
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="linear probe for a quick estimate: fit only the head, on features of small images",
    )
    parser.add_argument(
        "--oom",
        choices=("stop", "retry"),
        default="stop",
        help="out of memory: stop and print what fits (default), or retry with that and the same effective batch size",
    )
    parser.add_argument("--skip-checks", action="store_true", help="skip the checks of tools/check.py")
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        choices=("tensorboard", "mlflow", "wandb"),
        help="log the run to an experiment tracker, into the work dir; may be repeated",
    )
    parser.add_launcher()
    parser.add_cfg_options()
    return parser


def configured(args: Namespace) -> Config:
    """Return the checked config that the arguments describe."""
    with importing():
        from mmflowers.checks.findings import report
        from mmflowers.checks.run import check_training
        from mmflowers.engine.training import TrainOptions, configure

    named = {field.name: getattr(args, field.name) for field in fields(TrainOptions) if field.name != "command"}
    asked = TrainOptions(**named, command=typed())
    if args.skip_checks:
        return configure(asked)
    problems: list[tuple[str, Problem]] = []
    config = configure(asked, problems)
    report(check_training(config, problems, options=args.cfg_options), config.work_dir)
    return config


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    args = arguments().parse_args(argv)
    config = configured(args)

    from mmengine.dist import is_main_process

    from mmflowers.engine.training import train

    outcome = train(config, oom=args.oom)
    if is_main_process():
        print(outcome)
        files = [name for name in ("best.pth", "last.pth", "curves.png") if (outcome.work_dir / name).is_file()]
        print(f"results: {outcome.work_dir}{' (' + ', '.join(files) + ')' if files else ''}")
