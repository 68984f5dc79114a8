"""Stock MMPretrain: MMEngine's Runner with the hooks of MMPretrain's default_runtime, its CustomDataset and transforms.

Tuned: channels-last, cudnn_benchmark, and on a GPU its own mixed precision in bfloat16 (``AmpOptimWrapper`` asks for a
GPU), validation likewise. A ResNet is MMPretrain's own, in which torchvision's weights fit.
"""

import common


def backbone_and_width(args) -> tuple[dict, int]:
    if args.network.startswith("resnet"):
        depth = int(args.network.removeprefix("resnet"))
        start = dict(type="Pretrained", checkpoint=args.weights) if args.weights else None
        return dict(type="ResNet", depth=depth, init_cfg=start), 512 if depth < 50 else 2048
    return dict(type="TIMMBackbone", model_name=args.network, checkpoint_path=args.weights or ""), 1280


def make_config(args) -> dict:
    """What differs from default_runtime."""
    import torch

    gpu = torch.cuda.is_available()
    backbone, width = backbone_and_width(args)
    pixels = dict(mean=[255 * value for value in args.mean], std=[255 * value for value in args.std], to_rgb=True)
    pipelines = [
        [
            dict(type="LoadImageFromFile"),
            dict(type="RandomResizedCrop", scale=args.size, crop_ratio_range=common.CROP_SCALE, backend="pillow"),
            dict(type="RandomFlip", prob=0.5, direction="horizontal"),
            dict(type="PackInputs"),
        ],
        [
            dict(type="LoadImageFromFile"),
            dict(type="ResizeEdge", scale=args.val_resize, edge="short", backend="pillow"),
            dict(type="CenterCrop", crop_size=args.val_size),
            dict(type="PackInputs"),
        ],
    ]
    train_dataloader, val_dataloader = (
        dict(
            batch_size=args.batch_size,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=gpu,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=split == "train"),
            dataset=dict(type="CustomDataset", data_root=str(args.data), ann_file=f"{split}.txt", pipeline=pipeline),
        )
        for split, pipeline in zip(("train", "val"), pipelines, strict=True)
    )
    by_iteration = dict(by_epoch=True, convert_to_iter_based=True)
    schedule = [dict(type="LinearLR", start_factor=common.WARMUP_START, begin=0, end=1, **by_iteration)]
    if args.epochs > 1:
        rest = dict(begin=1, end=args.epochs, T_max=args.epochs - 1)
        schedule.append(dict(type="CosineAnnealingLR", eta_min=0.0, **rest, **by_iteration))
    return dict(
        model=dict(
            type="ImageClassifier",
            data_preprocessor=dict(num_classes=len(args.classes), **pixels),
            backbone=backbone,
            neck=dict(type="GlobalAveragePooling"),
            head=dict(
                type="LinearClsHead",
                num_classes=len(args.classes),
                in_channels=width,
                loss=dict(type="LabelSmoothLoss", label_smooth_val=common.LABEL_SMOOTHING, mode="original"),
                topk=(1,),
            ),
        ),
        train_dataloader=train_dataloader,
        val_dataloader=val_dataloader,
        val_evaluator=dict(type="Accuracy", topk=(1,)),
        optim_wrapper=dict(
            optimizer=dict(
                type="SGD",
                lr=args.lr or common.LEARNING_RATE,
                momentum=common.MOMENTUM,
                nesterov=True,
                weight_decay=common.WEIGHT_DECAY,
            ),
            paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
            **(dict(type="AmpOptimWrapper", dtype="bfloat16") if gpu and common.use_bfloat16(args) else {}),
        ),
        param_scheduler=schedule,
        train_cfg=dict(by_epoch=True, max_epochs=args.epochs, val_interval=1),
        val_cfg=dict(fp16=gpu and common.use_bfloat16(args)),
        default_hooks=dict(checkpoint=dict(save_best="auto", max_keep_ckpts=1)),
        env_cfg=dict(cudnn_benchmark=True),
        work_dir=str(args.work_dir),
        randomness=dict(seed=args.seed),
    )


def main() -> None:
    args = common.parse_arguments(__doc__)

    import torch
    from mmengine.hooks import Hook
    from mmengine.hub import get_config
    from mmengine.runner import Runner

    class ReportHook(Hook):
        priority = "VERY_HIGH"  # before a checkpoint is written

        def after_val_epoch(self, runner, metrics=None) -> None:
            report.epoch(metrics["accuracy/top1"])

    config = get_config("mmpretrain::_base_/default_runtime.py")
    config.merge_from_dict(make_config(args))
    runner = Runner.from_cfg(config)
    runner.model.to(memory_format=torch.channels_last)
    report = common.Report(runner.model.backbone, args)
    runner.register_hook(ReportHook())
    runner.train()
    report.close("mmpretrain", "mmengine")


if __name__ == "__main__":
    main()
