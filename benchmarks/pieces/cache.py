# Photos decoded once, augmented by whole batches in the main process, without loader workers.
_base_ = "../../configs/efficientnet_lite0_flowers.py"

loader = dict(num_workers=0, persistent_workers=False, dataset=dict(cache=True))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
data_preprocessor = dict(type="FlowersDataPreprocessor")
