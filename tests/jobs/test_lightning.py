"""What Lightning may print."""

import logging

from lit_extract.jobs.trainer import predict_trainer


def test_lightning_prints_warnings_alone_and_is_left_as_it_was(caplog):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, "lightning.pytorch")
    predict_trainer("cpu", devices=1)
    assert caplog.messages == []
    assert logger.level == logging.INFO
    logger.setLevel(before)
