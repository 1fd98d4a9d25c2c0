"""Remembered reviews, by property and by example."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from simplecache.kube.verdicts import Refusal, Ttl, Verdicts
from simplecache.model import Caller

TTL = Ttl(good_s=60, bad_s=10, stale_s=600, jitter=0.2, ahead=0.8)
POD = Caller("prj-a", "worker")
LUCK = st.floats(0, 1)


@given(LUCK, st.floats(-10, 2000) | st.none(), st.floats(0, 1e6))
def test_times_are_ordered_and_end_with_the_token(luck, life_s, now):
    verdicts = Verdicts(TTL)
    end = None if life_s is None else now + life_s
    verdicts.record(b"k", POD, now, expires_at=end, luck=luck)
    seen = verdicts.caller(b"k", now)
    if end is not None and end <= now:
        assert seen is None
        return
    assert seen is not None
    assert now <= seen.ahead_at <= seen.fresh_until <= seen.stale_until
    assert seen.fresh_until <= now + TTL.good_s
    if end is not None:
        assert seen.stale_until <= end
    else:
        assert seen.fresh_until >= now + 0.79 * TTL.good_s
    assert verdicts.caller(b"k", seen.stale_until) is None


@given(LUCK)
def test_a_refusal_is_short(luck):
    verdicts = Verdicts(TTL)
    verdicts.record(b"k", Refusal("no"), 0, expires_at=None, luck=luck)
    assert verdicts.refusal(b"k", 7.9) == Refusal("no")
    assert verdicts.refusal(b"k", 10) is None


def test_a_stale_time_below_the_time_to_live_does_not_shorten_it():
    verdicts = Verdicts(Ttl(good_s=60, stale_s=0, jitter=0))
    verdicts.record(b"k", POD, 0, expires_at=None, luck=0)
    assert verdicts.caller(b"k", 59.9) is not None
    assert verdicts.caller(b"k", 60) is None


def test_what_was_used_last_stays():
    verdicts = Verdicts(TTL, callers_max=2)
    for key in (b"a", b"b"):
        verdicts.record(key, POD, 0, expires_at=None, luck=0)
    verdicts.caller(b"a", 1)
    verdicts.record(b"c", POD, 1, expires_at=None, luck=0)
    assert [verdicts.caller(key, 1) is not None for key in (b"a", b"b", b"c")] == [
        True,
        False,
        True,
    ]


class Machine(RuleBasedStateMachine):
    """Latest word wins, shelves are bounded, and refusals never push callers out."""

    def __init__(self):
        super().__init__()
        self.verdicts = Verdicts(TTL, callers_max=4, refusals_max=3)
        self.now = 0.0
        self.said = {}

    @rule(key=st.integers(0, 7), good=st.booleans(), luck=LUCK)
    def review(self, key, good, luck):
        callers = {k for k in self.said if self.verdicts.caller(b"%d" % k, self.now)}
        outcome = POD if good else Refusal("no")
        self.verdicts.record(b"%d" % key, outcome, self.now, expires_at=None, luck=luck)
        self.said[key] = good
        if not good:
            left = {k for k in self.said if self.verdicts.caller(b"%d" % k, self.now)}
            assert left == callers - {key}

    @rule(seconds=st.floats(0, 700))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def only_the_latest_word_counts(self):
        assert len(self.verdicts) <= 7
        for key, good in self.said.items():
            name = b"%d" % key
            if self.verdicts.caller(name, self.now):
                assert good
                assert not self.verdicts.refusal(name, self.now)
            if self.verdicts.refusal(name, self.now):
                assert not good


TestMachine = Machine.TestCase
