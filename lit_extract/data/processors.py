"""Image processors of Transformers, and whole processors, which also take a text.

Extractors describe their processor by :class:`ProcessorSettings`, plain values that are recorded in the provenance. The
processor is created from the recorded values.
"""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict  # as elsewhere, for pydantic

IMAGE_PROCESSOR = "image_processor"  # key of preprocessing by Transformers instead of timm
PACKAGES = ("pillow", "torchvision", "transformers")  # other versions may give other pixels


class ProcessorSettings(TypedDict):
    """The preprocessing of a Transformers model; only a whole processor has ``source``, ``revision`` and ``call``.

    Fast and slow image processors of the same name resize differently; class and backend identify them.
    """

    image_processor: str  # class name, such as CLIPImageProcessorPil; for a VideoProcessor, an image is one frame
    backend: str  # "torchvision" or "pil"
    settings: dict[str, Any]  # its to_dict() as JSON
    source: NotRequired[str]  # folder, or repository on the hub, of processor and tokenizer
    revision: NotRequired[str | None]
    call: NotRequired[dict[str, Any]]  # arguments besides the image, such as {"text": ["<image> What is this?"]}


def recorded(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessing for the provenance, without the place of its files."""
    return {name: value for name, value in preprocessing.items() if name not in ("source", "revision")}


def image_processing(preprocessing: ProcessorSettings) -> Callable[[Image.Image], dict[str, Tensor]]:
    """Return a function from an RGB image to the tensors that the processor returns."""
    import transformers

    processor = getattr(transformers, preprocessing["image_processor"]).from_dict(preprocessing["settings"])
    if "source" in preprocessing:
        whole = transformers.AutoProcessor.from_pretrained(
            preprocessing["source"], revision=preprocessing.get("revision"), trust_remote_code=False
        )
        whole.image_processor = processor
        processor = whole
    is_of_videos = preprocessing["image_processor"].endswith("VideoProcessor")
    call = preprocessing.get("call", {})

    def process(image: Image.Image) -> dict[str, Tensor]:
        inputs = {"videos": [np.array(image)[None]]} if is_of_videos else {"images": [image]}  # (1 frame, H, W, 3)
        made = processor(**inputs, return_tensors="pt", **call)
        return {name: values for name, values in made.items() if isinstance(values, Tensor)}

    return process
