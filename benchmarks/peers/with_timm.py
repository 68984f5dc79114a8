"""timm's train.py on one device, from timm's parts: its loader and transforms, optimizer, schedule, loss and saver.

Tuned: channels-last, bfloat16 where there is some, the schedule stepped every update (``--sched-on-updates``) and its
cosine begun after the warm-up (``--warmup-prefix``).
"""

import common


def main() -> None:
    args = common.parse_arguments(__doc__)

    import torch
    from timm.data import create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, CheckpointSaver, accuracy

    torch.manual_seed(args.seed)
    device, amp = common.get_device(), common.use_bfloat16(args)
    model = common.build_network(args).to(device)
    report = common.Report(model, args)
    shared = dict(
        batch_size=args.batch_size,
        interpolation="bilinear",
        mean=args.mean,
        std=args.std,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
        use_prefetcher=device.type == "cuda",  # normalizes on the GPU while the batch before is at work
        device=device,
    )
    train_loader = create_loader(
        common.Photos(args.train),
        (3, args.size, args.size),
        is_training=True,
        scale=common.CROP_SCALE,
        color_jitter=0.0,
        **shared,
    )
    # timm takes the floor of size / crop_pct for the short edge.
    crop_pct = args.val_size / (args.val_resize + 0.5)
    val_loader = create_loader(common.Photos(args.val), (3, args.val_size, args.val_size), crop_pct=crop_pct, **shared)
    learning_rate = args.lr or common.LEARNING_RATE
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=learning_rate, weight_decay=common.WEIGHT_DECAY, momentum=common.MOMENTUM
    )
    schedule, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=max(1, args.epochs - 1),
        warmup_epochs=1,
        warmup_prefix=args.epochs > 1,  # the cosine begins after it, as everywhere here
        warmup_lr=learning_rate * common.WARMUP_START,
        step_on_epochs=False,
        updates_per_epoch=len(train_loader),
    )
    criterion = LabelSmoothingCrossEntropy(common.LABEL_SMOOTHING)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(args.work_dir), max_history=1)
    updates = 0
    for epoch in range(epochs):
        model.train()
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)  # nothing is left to do after the prefetcher
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            schedule.step_update(updates)

        model.eval()
        top1 = AverageMeter()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            for images, labels in val_loader:
                images, labels = images.to(device), labels.to(device)
                images = images.contiguous(memory_format=torch.channels_last)
                top1.update(accuracy(model(images), labels)[0].item(), len(labels))
        report.epoch(top1.avg)
        saver.save_checkpoint(epoch, metric=top1.avg)
    report.close()


if __name__ == "__main__":
    main()
