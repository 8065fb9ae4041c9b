"""``lit-extract coco-captions``: NSD's captions of COCO."""

from pathlib import Path

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes


def coco_captions(
    stim_info: str,
    annotations: list[str],
    output: str = "derivatives/captions/nsd-captions-coco.csv",
    overwrite: bool = False,
) -> int:
    """Make nsd-captions-coco.csv from COCO's caption annotations and NSD's stimulus table.

    Args:
        stim_info: NSD's stimulus table, nsd_stim_info_merged.csv.
        annotations: COCO's caption annotations, as '[captions_train2017.json, captions_val2017.json]'.
        output: CSV or Parquet file to write.
        overwrite: Replace an existing file.
    """
    from lit_extract.captioning.coco import coco_captions as build

    table = build(Path(stim_info), [Path(file) for file in annotations], Path(output), overwrite)
    print(f"{output}\n  {len(table)} images")
    return exit_codes.DONE


main = command(coco_captions)
