"""One pass of a Trainer over what is left, with the callbacks of one job."""

import warnings
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

# Rows travel with their index, workers are chosen by us, and a rank may have nothing left to do.
_EXPECTED = (
    "Couldn't infer the batch indices",
    ".*does not have many workers",
    ".*zero length",
    ".*zero across",
    ".*treespec, LeafSpec",
)


def run_predict(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, callbacks: Sequence[Callback]
) -> None:
    """``trainer.predict``, without Lightning's warnings of what is meant; the Trainer is left as it was."""
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message)
            trainer.predict(model, datamodule=data, return_predictions=False)
    finally:
        for callback in callbacks:
            trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
