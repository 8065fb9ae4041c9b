"""What ranks tell each other, in every order in which it can be heard; the ranks are objects of this process."""

import signal
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from lit_extract.common import signals
from lit_extract.jobs import team
from lit_extract.jobs.team import Team


@pytest.fixture
def make_team(monkeypatch):
    """A function that makes a rank of two, whose process has heard of nothing; all have one key-value store."""
    store = HashStore()
    monkeypatch.setattr(team, "_has_group", lambda: True)
    monkeypatch.setattr(team, "SECONDS_BETWEEN_LOOKS", 60)  # the thread looks at nothing by itself
    monkeypatch.setenv(signals.LAUNCHER, "0")

    def make(rank):
        monkeypatch.setattr(signals, "_current", signals._Listener(exit_at_second=False))
        trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=SimpleNamespace(launcher=None))
        made = Team(trainer)
        made.has_begun = True
        monkeypatch.setattr(made, "_store", lambda: store)
        return made, store

    return make


def test_the_signal_of_a_rank_that_has_ended_is_heard_with_its_end(make_team):
    """Rank 1 is so fast that it ends before its thread has passed on the signal."""
    second, _ = make_team(1)
    signals.ask(signal.SIGTERM)
    with second:
        assert second.conclude(signals.Interrupted(signal.SIGTERM)).code == 0
    first, _ = make_team(0)
    with first:
        verdict = first.conclude(None)
    assert isinstance(verdict, signals.Interrupted)
    assert verdict.code == 143


def test_the_signal_is_heard_by_a_rank_that_has_stopped_already(make_team):
    """Rank zero has seen the end of rank 1, taken it for a failure, told all, and left its loop for that."""
    first, store = make_team(0)
    signals.ask(signals.BY_ANOTHER_RANK)
    first._exchange(store)
    stopped = signals.Interrupted(signals.asked())
    listener = signals._current
    second, _ = make_team(1)
    with second:
        second.conclude(signals.Interrupted(signal.SIGTERM))
    signals._current = listener
    with first:
        assert first.conclude(stopped).code == 143


@pytest.mark.parametrize("order", [(0, signal.SIGTERM), (signal.SIGTERM, 0)])
def test_a_signal_replaces_the_word_of_a_failure_in_the_store(make_team, order):
    for number in order:
        rank, store = make_team(0)
        signals.ask(number)
        rank._exchange(store)
    assert int(store.get("stop")) == signal.SIGTERM
    late, store = make_team(1)
    signals.ask(signals.BY_ANOTHER_RANK)
    late._exchange(store)
    assert signals.asked() == signal.SIGTERM


def test_a_barrier_is_left_with_the_code_of_the_signal(make_team, monkeypatch, capsys):
    second, _ = make_team(1)
    with second:
        second.conclude(signals.Interrupted(signal.SIGTERM))
    codes = []
    monkeypatch.setattr(team.os, "_exit", codes.append)
    first, store = make_team(0)
    first._look(store)
    first._leave_barrier()
    assert codes == [143]
    assert capsys.readouterr().err == ("lit-extract: stopped by SIGTERM; run the same command again to go on\n")
