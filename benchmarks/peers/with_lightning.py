"""Lightning's Trainer with a LightningModule as its documentation writes one.

Tuned: channels-last, bfloat16 where there is some (``precision="bf16-mixed"``), ``benchmark=True``, no sanity check.
"""

import common


def main() -> None:
    args = common.parse_arguments(__doc__)

    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.nn import functional

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = common.build_network(args)

        def training_step(self, batch, index):
            images, labels = batch
            loss = functional.cross_entropy(self.network(images), labels, label_smoothing=common.LABEL_SMOOTHING)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index) -> None:
            images, labels = batch
            right = (self.network(images).argmax(1) == labels).float().mean()
            self.log("val_top1", right, batch_size=len(labels))  # weighs the mean over batches

        def configure_optimizers(self) -> dict:
            optimizer, schedule = common.optimizer_and_schedule(self, args, len(train_loader))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class ReportCallback(lightning.Callback):
        def on_validation_epoch_end(self, trainer, module) -> None:
            report.epoch(100 * trainer.callback_metrics["val_top1"].item())

    lightning.seed_everything(args.seed)
    train_loader, val_loader = common.loaders(args)
    classifier = Classifier()
    report = common.Report(classifier.network, args)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        precision="bf16-mixed" if common.use_bfloat16(args) else "32-true",
        benchmark=True,
        num_sanity_val_steps=0,
        default_root_dir=args.work_dir,
        callbacks=[
            ReportCallback(),
            ModelCheckpoint(monitor="val_top1", mode="max", save_weights_only=True),
        ],
    )
    trainer.fit(classifier, train_loader, val_loader)
    report.close("lightning")


if __name__ == "__main__":
    main()
