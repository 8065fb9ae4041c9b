"""``lit-extract`` with a model that takes SLOW_LOAD seconds to load and SLOW_STEP seconds a batch, and says so.

At batch HELD_STEP each rank waits until it has heard that it is to stop: that takes as long as the machine is busy.
Through streamed blocks go TOKENS_A_PASS tokens together, and each batch takes SLOW_BLOCK seconds more for each of them.
A file of its own, as Lightning starts further ranks by running the same file again.
"""

import os
import sys
import time

from lit_extract.common import signals
from lit_extract.modules import room
from lit_extract.modules.streaming import StreamedBlocks
from lit_extract.modules.vision import VisionExtractor
from lit_extract.modules.vision_language import VisionLanguageExtractor


def say(line):
    """In one piece: two ranks that print a line and its end would mix them up."""
    os.write(1, f"{line}\n".encode())


def slow_down(extractor):
    load, step = extractor.configure_model, extractor.predict_step

    def slow_load(self):
        say("loading")
        time.sleep(float(os.environ.get("SLOW_LOAD", "0")))
        load(self)

    def slow_step(self, batch, batch_idx=0):
        say(f"step {batch_idx} of rank {self.trainer.global_rank}")
        time.sleep(float(os.environ.get("SLOW_STEP", "0")))
        while str(batch_idx) == os.environ.get("HELD_STEP") and signals.requested() is None:
            time.sleep(0.01)
        return step(self, batch, batch_idx)

    extractor.configure_model, extractor.predict_step = slow_load, slow_step


def slow_down_blocks():
    enter = StreamedBlocks._enter

    def slow_enter(self, block, module, args):
        enter(self, block, module, args)
        say(f"block {block}")
        time.sleep(float(os.environ.get("SLOW_BLOCK", "0")))

    StreamedBlocks._enter = slow_enter
    room.TOKENS_ON_CPU = int(os.environ.get("TOKENS_A_PASS", room.TOKENS_ON_CPU))


if __name__ == "__main__":
    from lit_extract.cli import main

    slow_down(VisionExtractor)
    slow_down(VisionLanguageExtractor)
    slow_down_blocks()
    sys.exit(main(sys.argv[1:]))
