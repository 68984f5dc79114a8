"""The data card of a dataset folder: Markdown with the metadata that Hugging Face reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.records import Record
from mmflowers.preparation.sources import FLOWER_PHOTOS, VAL_DRAWN
from mmflowers.preparation.splitting import shown
from mmflowers.preparation.summary import Summary
from mmflowers.version import __version__

HUB_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # by digits, from 3 to 7
HUB_SPLITS = {"val": "validation"}


def data_card(summary: Summary, records: Iterable[Record], source: dict[str, Any], options: PrepareOptions) -> str:
    """Return the text of ``DATA_CARD.md``.

    Args:
        summary: Of the dataset.
        records: Every file of the source.
        source: The source's description.
        options: Of the preparation.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmflowers.preparation"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    verdicts = Counter(record.verdict for record in records)
    shares = options.shares
    return environment.get_template("data_card.md.j2").render(
        metadata=_metadata(summary, source),
        name=summary.out.name,
        photos=summary.photos,
        classes=len(summary.classes),
        version=__version__,
        source=f"{shown(str(source.get('name', 'a folder')))} ({source.get('kind', 'folder')})",
        is_public=_is_public(source),
        table=summary.table(),
        seed=options.seed,
        val_drawn=f"{float(options.val_share):g}" if str(source.get("split")).endswith(VAL_DRAWN) else "",
        shares=shares and ", ".join(f"{name} {float(share):g}" for name, share in shares.items() if share),
        files=verdicts.total(),
        kept=verdicts["kept"],
        converted=verdicts["converted"],
        dropped=verdicts["dropped"],
        identical=len(summary.duplicates.identical),
        conflicts=len(summary.duplicates.conflicts),
        near=len(summary.duplicates.near),
        duplicates=options.duplicates,
        resize=options.resize,
        reasons=sorted(summary.dropped_by_reason.items()) + sorted(summary.converted.items()),
    )


def _metadata(summary: Summary, source: dict[str, Any]) -> str:
    """Return the card's YAML, as huggingface.co reads it at the head of a dataset's ``README.md``."""
    import yaml

    splits = [{"split": HUB_SPLITS.get(split, split), "path": f"{split}/**"} for split in summary.counts]
    metadata = {
        "pretty_name": shown(summary.out.name),
        **({"license": "cc-by-2.0"} if _is_public(source) else {}),
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "size_categories": [HUB_SIZES[min(max(len(str(summary.photos)) - 3, 0), len(HUB_SIZES) - 1)]],
        "tags": ["mmflowers", *(["synthetic"] if source.get("kind") == "rendered" else [])],
        # The photos alone, each with the name of its folder as the label; not the contact sheet.
        "configs": [{"config_name": "default", "drop_labels": False, "data_files": splits}],
    }
    text: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _is_public(source: dict[str, Any]) -> bool:
    """Whether the photos are TensorFlow's flower photos, whose licence is known."""
    return source.get("sha256") == FLOWER_PHOTOS.sha256
