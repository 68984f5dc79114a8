# PYTHON_ARGCOMPLETE_OK
"""Train a classifier on a dataset folder, on a GPU where there is one.

examples:
  python tools/train.py configs/resnet50_flowers.py
  python tools/train.py configs/efficientnet_lite0_flowers.py --amp --data my_dataset
  python tools/train.py configs/resnet50_flowers.py --resume
  python tools/train.py configs/resnet50_flowers.py --track tensorboard --track mlflow
  torchrun --nproc-per-node 2 tools/train.py configs/resnet50_flowers.py --launcher pytorch
"""

from __future__ import annotations

import shlex
import sys

from mmflowers.commands import Parser, importing, natural, run


def arguments() -> Parser:
    """What a training takes, here and in ``benchmarks/benchmark.py train``."""
    parser = Parser(description=__doc__)
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("--data", metavar="DIR", help="dataset folder (default: the config's, flower_dataset)")
    parser.add_argument(
        "--weights",
        metavar="FILE|none",
        help="weights to start from, in OpenMMLab's, torchvision's or timm's key names; none: from scratch "
        "(default: the config's)",
    )
    parser.add_argument("--work-dir", metavar="DIR", help="where the results go (default: work_dirs/<config>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on from last.pth, or from CHECKPOINT, with its weights",
    )
    parser.add_argument(
        "--amp", action="store_true", help="bfloat16 and channels-last: faster, on GPUs and on new CPUs"
    )
    parser.add_argument("--seed", type=natural, metavar="N", help="of all that is random (default: the config's, 0)")
    parser.add_argument("--laptop", action="store_true", help="a small run to see it work: 3 epochs, smaller images")
    parser.add_argument(
        "--fast", action="store_true", help="the same recipe on photos decoded once and augmented on the device"
    )
    parser.add_argument(
        "--freeze-to",
        metavar="LAYER",
        help="train only what comes after this layer (layer3, blocks.4; backbone: the head alone), on feature maps "
        "computed once",
    )
    parser.add_argument(
        "--views", type=int, default=4, metavar="N", help="augmented views of a photo for --freeze-to (default: 4)"
    )
    parser.add_argument(
        "--probe", action="store_true", help="a quick look: fit the head on the weights' features of small images"
    )
    parser.add_argument(
        "--oom",
        choices=("stop", "retry"),
        default="stop",
        help="out of memory: stop and say what fits (default), or go on with that and the same effective batch",
    )
    parser.add_argument("--skip-checks", action="store_true", help="leave out what tools/check.py looks at")
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        choices=("tensorboard", "mlflow", "wandb"),
        help="let a tracker follow the run; what it keeps lies in the work dir; repeatable",
    )
    parser.add_launcher()
    parser.add_cfg_options()
    return parser


def settle(args):
    """The config that the arguments ask for, checked."""
    with importing():
        from mmflowers.checks.findings import report
        from mmflowers.checks.run import check_training
        from mmflowers.engine.training import configure

    problems = None if args.skip_checks else []
    config = configure(
        args.config,
        data=args.data,
        weights=args.weights,
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        laptop=args.laptop,
        fast=args.fast,
        freeze_to=args.freeze_to,
        views=args.views,
        probe=args.probe,
        launcher=args.launcher,
        track=args.track,
        cfg_options=args.cfg_options,
        command=shlex.join(["python", *sys.argv]),
        problems=problems,
    )
    if problems is not None:
        report(check_training(config, problems, options=args.cfg_options), config.work_dir)
    return config


def main() -> None:
    args = arguments().parse_args()

    from mmengine.dist import is_main_process

    from mmflowers.engine.training import train

    outcome = train(settle(args), oom=args.oom)
    if is_main_process():
        print(outcome)
        files = [name for name in ("best.pth", "last.pth", "curves.png") if (outcome.work_dir / name).is_file()]
        print(f"results: {outcome.work_dir}{' (' + ', '.join(files) + ')' if files else ''}")


if __name__ == "__main__":
    run(main)
