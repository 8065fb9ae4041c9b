"""The token budget: chosen from free memory, and from then on part of the job."""

import numpy as np
import psutil
import pytest
import torch
from language_models import save_captions, save_model

from lit_extract import CaptionDataModule, LanguageExtractor, budget, extract, load_features
from lit_extract.budget import choose_token_budget, free_memory
from lit_extract.errors import InputError
from lit_extract.memory import forward_bytes
from lit_extract.predict import predict_trainer

LONGEST = 40
BUDGETS = [1024, 2048, 4096, 8192, 16384, 32768]
GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and captions of 2 to 40 tokens."""
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder / "model", "llama")
    save_captions(folder / "captions.csv", [1 + k % (LONGEST - 1) for k in range(400)])
    return folder


def extractor(folder, **settings):
    return LanguageExtractor("tiny", checkpoint=str(folder / "model"), **settings)


def needed(folder, tokens, on_gpu, **settings):
    """Free memory of which a batch of the longest captions takes four fifths."""
    peak = forward_bytes(extractor(folder, **settings), tokens // LONGEST, LONGEST, "32-true", on_gpu).peak
    return int(np.ceil((1.1 if on_gpu else 1) * peak / 0.8))


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_largest_budget_that_fits(folder, on_gpu, loss):
    model = extractor(folder, loss=loss)
    budgets = BUDGETS if on_gpu else BUDGETS[:2]
    needs = [needed(folder, tokens, on_gpu, loss=loss) for tokens in budgets]
    assert needs == sorted(set(needs))
    for place, tokens in enumerate(budgets):
        chosen = [choose_token_budget(model, LONGEST, "32-true", needs[place] - less, on_gpu) for less in (0, 2)]
        assert chosen == [tokens, budgets[max(0, place - 1)]]
    assert choose_token_budget(model, LONGEST, "32-true", 0, on_gpu) == 1024, "the batch is split then"
    assert choose_token_budget(model, LONGEST, "32-true", 100 * GB, on_gpu) == budgets[-1]


def test_captions_longer_than_the_budget_go_one_by_one(folder):
    model = extractor(folder)
    one_row = forward_bytes(model, 1, 3000, "32-true", on_gpu=True).peak
    assert choose_token_budget(model, 3000, "32-true", int(1.1 * one_row / 0.8) + 1, on_gpu=True) == 4096


def test_nothing_is_estimated_on_a_cpu_with_plenty_of_memory(folder, monkeypatch):
    def estimate(*_):
        raise AssertionError("estimated")

    monkeypatch.setattr(budget, "estimate", estimate)
    model = extractor(folder)
    assert choose_token_budget(model, LONGEST, "32-true", 9 * GB, on_gpu=False) == 2048
    for settings in ((LONGEST, "32-true", 7 * GB, False), (5000, "32-true", 9 * GB, False)):
        with pytest.raises(AssertionError, match="estimated"):
            choose_token_budget(model, *settings)


def test_free_memory_of_this_host():
    assert free_memory(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


# Whole jobs


class StopError(Exception):
    pass


@pytest.fixture
def job(folder, tmp_path, monkeypatch):
    """A function that runs a job with so many bytes free; it may be stopped at a batch."""

    def run(free, stop_at=None, output="out", token_budget=None, **settings):
        class Stopping(LanguageExtractor):
            def predict_step(self, batch, batch_idx=0):
                if batch_idx == stop_at:
                    raise StopError
                return super().predict_step(batch, batch_idx)

        monkeypatch.setattr(budget, "free_memory", lambda device: free)
        model = Stopping("tiny", checkpoint=str(folder / "model"))
        data = CaptionDataModule(str(folder / "captions.csv"), "test", token_budget=token_budget, shard_rows=100)
        trainer = predict_trainer("cpu", devices=1, precision="32-true")
        return extract(model, data, trainer, str(tmp_path / output), **settings)

    return run


def budget_of(extraction):
    return load_features(extraction.files[0]).provenance["token_budget"]


def test_a_job_keeps_its_budget_however_much_is_free_later(job, folder, capsys):
    little, more = (needed(folder, tokens, on_gpu=False) for tokens in (1024, 2048))
    with pytest.raises(StopError):
        job(little, stop_at=5)
    assert "batches of up to 1024 tokens\n" in capsys.readouterr().out
    done = job(more)
    said = capsys.readouterr().out
    assert "1 of 4 shards done" in said
    assert "batches of" not in said
    assert budget_of(done) == 1024
    given = job(more, output="given", token_budget=1024)
    assert "batches of" not in capsys.readouterr().out
    feats = [load_features(extraction.files[0]).feats.numpy().tobytes() for extraction in (done, given)]
    assert feats[0] == feats[1]
    assert job(more).was_done
    assert job(more, token_budget=1024).was_done
    with pytest.raises(InputError, match="made with other settings: token_budget was 1024, now 2048"):
        job(more, token_budget=2048)
    assert budget_of(job(more, overwrite=True)) == 2048
    assert "batches of up to 2048 tokens\n" in capsys.readouterr().out


def test_a_begun_store_is_not_gone_on_with_a_given_budget_that_differs(job, folder):
    with pytest.raises(StopError):
        job(100 * GB, stop_at=5)
    with pytest.raises(InputError, match="token_budget was 2048, now 1024"):
        job(100 * GB, token_budget=1024)
    assert budget_of(job(needed(folder, 1024, on_gpu=False))) == 2048


def test_a_store_that_is_complete_is_finalized_with_its_budget(job, folder):
    job(needed(folder, 1024, on_gpu=False), finalize=False)
    assert budget_of(job(100 * GB)) == 1024


def test_a_second_job_of_the_same_data_chooses_anew(folder, tmp_path, monkeypatch):
    data = CaptionDataModule(str(folder / "captions.csv"), "test")
    budgets = []
    for number, tokens in enumerate((1024, 2048)):
        free = needed(folder, tokens, on_gpu=False)
        monkeypatch.setattr(budget, "free_memory", lambda device, free=free: free)
        trainer = predict_trainer("cpu", devices=1, precision="32-true")
        budgets.append(budget_of(extract(extractor(folder), data, trainer, str(tmp_path / str(number)))))
    assert budgets == [1024, 2048]


def test_a_model_that_can_not_be_estimated_has_the_usual_budget(job, monkeypatch, capsys):
    def forward_bytes(*_):
        raise KeyError("what")

    monkeypatch.setattr("lit_extract.memory.forward_bytes", forward_bytes)
    assert budget_of(job(10**6)) == 8192
    said = [line for line in capsys.readouterr().out.splitlines() if "tokens" in line]
    assert said == ["the memory of 'tiny' can't be estimated (KeyError: 'what'); batches of up to 8192 tokens"]
