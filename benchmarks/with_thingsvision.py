"""Images a second of thingsvision; run by a Python that has it, with the settings as JSON; prints the number last."""

import json
import sys
import tempfile
import time

from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset


def main(model, images, n, batch, device):
    """All tokens of all blocks, as thingsvision gives them."""
    extractor = get_extractor(model_name=model, source="timm", device=device, pretrained=False)
    blocks = [f"blocks.{k}" for k in range(len(extractor.model.blocks))]
    with tempfile.TemporaryDirectory() as order:
        dataset = ImageDataset(
            root=images,
            out_path=order,
            backend=extractor.get_backend(),
            file_names=[f"{number:05d}.jpg" for number in range(n)],
            transforms=extractor.get_transformations(),
        )
        start = time.perf_counter()
        batches = DataLoader(dataset=dataset, batch_size=batch, backend=extractor.get_backend())
        feats = extractor.extract_features(batches=batches, module_names=blocks, output_type="tensor")
        seconds = time.perf_counter() - start
    assert len(feats) == len(blocks)
    assert all(len(feats[block]) == n for block in blocks)
    print(n / seconds)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
