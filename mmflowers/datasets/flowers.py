"""The dataset that MMEngine builds from a dataset folder."""

from __future__ import annotations

from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from mmflowers.datasets.folder import read_dataset_folder


@DATASETS.register_module()
class FlowersDataset(CustomDataset):
    """A split of a dataset folder: the class names come from its ``classes.txt``, the photos from its list.

    MMPretrain's ``CustomDataset`` compares the number of classes only and takes missing files and labels out of range;
    here the folder is checked whole when it is read (``read_dataset_folder``).

    Args:
        data_root: The dataset folder.
        ann_file: The split's list in it, ``train.txt``.
        **kwargs: Those of ``CustomDataset``; ``metainfo`` and ``data_prefix`` are not needed, as lists are relative to
            the folder.
    """

    def __init__(self, data_root: str, ann_file: str, **kwargs) -> None:
        split = ann_file.removesuffix(".txt")
        self._folder = read_dataset_folder(data_root, splits=(split,))
        self._split = split
        metainfo = {**(kwargs.pop("metainfo", None) or {}), "classes": tuple(self._folder.classes)}
        super().__init__(data_root=data_root, ann_file=ann_file, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One ``dict(img_path=…, gt_label=…)`` a photo, in the order of the list."""
        return [
            {"img_path": str(self._folder.root / path), "gt_label": label}
            for path, label in self._folder.samples[self._split]
        ]
