"""fastai's vision_learner and fine_tune: an epoch on the frozen body, then all layers, with fastai's own head, Adam,
one-cycle schedule and rates for head and body apart. The frozen epoch is one of ``--epochs``, of which it needs two.

Tuned: channels-last, and on a GPU bfloat16 (fastai's mixed precision is CUDA's alone).
"""

import sys

import common


def main() -> None:
    args = common.parse_arguments(__doc__)

    import pandas
    import torch
    from fastai.vision.all import (
        Callback,
        ImageDataLoaders,
        LabelSmoothingCrossEntropyFlat,
        Normalize,
        PILImage,
        RandTransform,
        SaveModelCallback,
        accuracy,
        set_seed,
        vision_learner,
    )
    from torchvision import transforms

    class Crop(RandTransform):
        """One transform to train, another to validate, as fastai's tutorial on foreign augmentation has them."""

        split_idx, order = None, 2

        def before_call(self, b, split_idx: int | None) -> None:
            self.steps = crops[0 if split_idx == 0 else 1]  # None while fastai looks at a first photo

        def encodes(self, photo: PILImage):
            return PILImage(self.steps(photo))

    class ReportCallback(Callback):
        order = 55  # after the Recorder, before a checkpoint is written

        def after_epoch(self) -> None:
            report.epoch(100 * self.learn.recorder.values[-1][-1])

    if args.epochs < 2:
        sys.exit("fine_tune needs --epochs 2 or more: one of them is frozen")
    set_seed(args.seed)
    common.get_device()
    crops = [transforms.Compose(steps) for steps in common.crops(args)]
    rows = [
        (path, args.classes[label], valid) for valid in (False, True) for path, label in (args.train, args.val)[valid]
    ]
    loaders = ImageDataLoaders.from_df(
        pandas.DataFrame(rows, columns=["path", "label", "valid"]),
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="valid",
        item_tfms=Crop(),
        batch_tfms=Normalize.from_stats(args.mean, args.std),
        bs=args.batch_size,
        num_workers=args.workers,
    )
    start = dict(pretrained_cfg_overlay=dict(file=args.weights)) if args.weights else {}
    learner = vision_learner(
        loaders,
        args.network,
        pretrained=bool(args.weights),
        loss_func=LabelSmoothingCrossEntropyFlat(common.LABEL_SMOOTHING),
        metrics=accuracy,
        path=args.work_dir,
        cbs=[ReportCallback(), SaveModelCallback(monitor="accuracy")],
        **start,
    )
    amp = torch.cuda.is_available() and common.use_bfloat16(args)
    learner.to_channelslast(use_amp=amp, amp_mode="bf16")
    report = common.Report(learner.model, args)
    rate = dict(base_lr=args.lr) if args.lr else {}
    learner.fine_tune(args.epochs - 1, freeze_epochs=1, **rate)
    report.close("fastai")


if __name__ == "__main__":
    main()
