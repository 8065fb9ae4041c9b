"""COCO's human captions for NSD, whose images are crops of COCO's images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, FailFast, TypeAdapter
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from lit_extract.captioning.output import check_output, write_captions
from lit_extract.captioning.parts import without_nul
from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import Count, read_regular, validate_json
from lit_extract.datasets.captions import SEPARATOR
from lit_extract.datasets.ids import parse_ids
from lit_extract.datasets.reader import check_columns, read_table, with_numbers

COLUMNS = ("cocoId", "cocoSplit", "nsdId")
MAX_COCO_BYTES = 200 * 2**20  # captions_train2017.json has 92 MB


class _Annotation(TypedDict):
    image_id: Count
    caption: Annotated[str, AfterValidator(without_nul)]


class _Annotations(TypedDict):
    annotations: Annotated[list[_Annotation], FailFast()]


_ANNOTATIONS = TypeAdapter(_Annotations)


def coco_captions(stim_info: Path, annotations: Sequence[Path], output: Path, overwrite: bool = False) -> pd.DataFrame:
    """Build ``nsd-captions-coco.csv`` from NSD's ``nsd_stim_info_merged.csv`` and COCO's two files of captions.

    Returns:
        One row per image of NSD, by ``nsd_id`` (counted from 0): ``coco_id``, ``coco_split``, ``caption`` (the first in
        COCO's order) and ``captions`` (all of them, separated by ";"; a ";" inside a caption becomes a comma).
    """
    path = check_output(str(output))
    if path.exists() and not overwrite:
        raise InputError(f"output: {str(path)!r} exists already; pass --overwrite to replace it")
    images = _read_images(stim_info)
    captions = read_annotations(annotations)
    if missing := [str(coco_id) for coco_id in images["coco_id"] if coco_id not in captions]:
        raise InputError(
            f"annotations: no caption for the COCO images {name_some(missing)} of NSD; give both "
            "captions_train2017.json and captions_val2017.json"
        )
    of_image = [captions[coco_id] for coco_id in images["coco_id"]]
    images["caption"] = [texts[0] for texts in of_image]
    images["captions"] = [SEPARATOR.join(text.replace(SEPARATOR, ",") for text in texts) for texts in of_image]
    write_captions(images, path)
    return images


def read_annotations(files: Sequence[Path]) -> dict[int, list[str]]:
    """Return the captions of each COCO image, in COCO's order, without line ends and surrounding blanks."""
    captions: dict[int, list[str]] = {}
    for file in files:
        try:
            content = read_regular(file, MAX_COCO_BYTES)
        except OSError as error:
            raise InputError(f"annotations: {str(file)!r} can't be read: {error.strerror or one_line(error)}") from None
        what = f"annotations: {str(file)!r} is not a file of COCO's captions"
        for entry in validate_json(_ANNOTATIONS, content, what)["annotations"]:
            if text := " ".join(entry["caption"].split()):
                captions.setdefault(entry["image_id"], []).append(text)
    return captions


def _read_images(path: Path) -> pd.DataFrame:
    what = f"stim_info: {str(path)!r}"
    table = read_table(path, "stim_info")
    check_columns(table, COLUMNS, what)
    coco_ids = with_numbers(table)["cocoId"]
    if not all(isinstance(coco_id, int | np.integer) for coco_id in coco_ids):
        raise InputError(f"{what}: cocoId must be integers")
    images = pd.DataFrame(
        {"nsd_id": parse_ids(table["nsdId"], "nsdId", what), "coco_id": coco_ids, "coco_split": table["cocoSplit"]}
    ).sort_values("nsd_id", ignore_index=True)
    if images.empty or images["nsd_id"].tolist() != list(range(len(images))):
        raise InputError(f"{what}: nsdId must count from 0, each number once")
    return images
