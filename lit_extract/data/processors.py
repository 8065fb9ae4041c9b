"""Image processors of Transformers, and whole processors that take a text too.

Extractors describe theirs by :class:`ProcessorSettings`, as plain values, which are recorded in the provenance. The
processor is made from what is recorded, so it does what the record says.
"""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict  # pydantic's, elsewhere

IMAGE_PROCESSOR = "image_processor"  # of preprocessing, where it is of Transformers and not of timm
PACKAGES = ("pillow", "torchvision", "transformers")  # another version may give other pixels


class ProcessorSettings(TypedDict):
    """The preprocessing of a model of Transformers; only a whole processor has ``source``, ``revision`` and ``call``.

    Fast and slow image processors of the same name resize differently: their class and backend say which it is.
    """

    image_processor: str  # name of the class, as CLIPImageProcessorPil; of a VideoProcessor an image is one frame
    backend: str  # "torchvision" or "pil"
    settings: dict[str, Any]  # what its to_dict() has, as JSON
    source: NotRequired[str]  # folder, or repository on the hub, of processor and tokenizer
    revision: NotRequired[str | None]
    call: NotRequired[dict[str, Any]]  # arguments besides the image, as {"text": ["<image> What is this?"]}


def recorded(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessing as the provenance has it: the place of its files is that of the weights, or of no matter."""
    return {name: value for name, value in preprocessing.items() if name not in ("source", "revision")}


def image_processing(preprocessing: ProcessorSettings) -> Callable[[Image.Image], dict[str, Tensor]]:
    """Return a function from an image, RGB, to the tensors that the processor makes of it."""
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
