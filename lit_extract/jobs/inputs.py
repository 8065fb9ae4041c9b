"""Whether stimuli are still those that were read.

N stimuli.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from lit_extract.data.base import StimulusDataModule
from lit_extract.storage.layout import CONTENT, MTIME, SIZE

logger = logging.getLogger(__name__)


def changed_rows(recorded: NDArray[np.int64], rows: NDArray[np.bool_], data: StimulusDataModule) -> NDArray[np.int64]:
    """Rows whose inputs are others than those that were read.

    A file of the same size and time is taken as unchanged, as Git and make do; any other is read and its content
    compared. Where no content was noted, by earlier versions and of captions, sizes are compared.

    Args:
        recorded: (N, 4) what was noted of each row's input.
        rows: (N,) which rows to look at.
        data: The stimuli as they are now, set up.
    """
    other_size = recorded[:, SIZE] != data.n_bytes
    is_known = recorded[:, CONTENT] != 0
    changed = rows & ~is_known & other_size
    if is_known.any():
        touched = np.flatnonzero(rows & is_known & (other_size | (recorded[:, MTIME] != data.mtimes_ns)))
        if len(touched):
            logger.info(
                f"comparing the content of {len(touched)} stimuli, whose files have another size or time than when read"
            )
            changed[touched] = data.contents(touched.tolist()) != recorded[touched, CONTENT]
    return np.flatnonzero(changed)
