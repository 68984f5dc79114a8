"""Hugging Face's Trainer, as transformers' example of image classification sets it up, on its wrapper for timm.

Tuned: channels-last, bfloat16 where there is some, workers that live on, the recipe's optimizer in place of AdamW at
5e-5, which is for transformers, and no optimizer in its checkpoints.
"""

import common


def main() -> None:
    args = common.parse_arguments(__doc__)

    import torch
    from transformers import (
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    set_seed(args.seed)
    common.get_device()
    train, val = common.datasets(args)
    config = TimmWrapperConfig(architecture=args.network, num_labels=len(args.classes))
    model = TimmWrapperForImageClassification(config).to(memory_format=torch.channels_last)
    model.timm_model.load_state_dict(common.build_network(args).state_dict())
    report = common.Report(model, args)
    steps_per_epoch = -(-len(train) // args.batch_size)

    class ReportCallback(TrainerCallback):
        def on_evaluate(self, arguments, state, control, metrics, **kwargs) -> None:
            report.epoch(100 * metrics["eval_accuracy"])

    def collate(examples: list[tuple]) -> dict:
        photos, labels = zip(*examples, strict=True)
        return {"pixel_values": torch.stack(photos), "labels": torch.tensor(labels)}

    def compute_metrics(prediction) -> dict[str, float]:
        return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.work_dir),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            label_smoothing_factor=common.LABEL_SMOOTHING,
            max_grad_norm=0.0,  # no clipping, as everywhere here
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            save_only_model=True,
            bf16=common.use_bfloat16(args),
            use_cpu=not torch.cuda.is_available(),
            dataloader_num_workers=args.workers,
            dataloader_persistent_workers=args.workers > 0,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            report_to="none",
            seed=args.seed,
        ),
        data_collator=collate,
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=compute_metrics,
        callbacks=[ReportCallback()],
        optimizers=common.optimizer_and_schedule(model, args, steps_per_epoch),
    )
    trainer.train()
    report.close("transformers", "accelerate")


if __name__ == "__main__":
    main()
