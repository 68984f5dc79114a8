"""The loop of torchvision's references/classification on one device: its optimizer, loss, loader and checkpoint.

Tuned: channels-last, bfloat16 where there is some, loader workers that live on, and the schedule stepped every
iteration, where the reference steps it once an epoch.
"""

import common


def main() -> None:
    args = common.parse_arguments(__doc__)

    import torch

    torch.manual_seed(args.seed)
    device, amp = common.get_device(), common.use_bfloat16(args)
    train_loader, val_loader = common.loaders(args)
    model = common.build_network(args).to(device)
    report = common.Report(model, args)
    optimizer, schedule = common.optimizer_and_schedule(model, args, len(train_loader))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=common.LABEL_SMOOTHING)

    for epoch in range(args.epochs):
        model.train()
        for images, labels in train_loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

        model.eval()
        correct = torch.zeros((), device=device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            for images, labels in val_loader:
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                correct += (model(images).argmax(1) == labels).sum()
        report.epoch(100 * correct.item() / len(args.val))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state | {"lr_scheduler": schedule.state_dict()}, args.work_dir / "checkpoint.pth")
    report.close()


if __name__ == "__main__":
    main()
