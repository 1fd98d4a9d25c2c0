"""The safety rules of membership, by examples and by random histories."""

import dataclasses

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from simplecache.control.membership import AGREEING_ROUNDS, Membership, Outcome
from simplecache.control.shards import Shard

READY, UNREADY, SILENT, REFUSED = Outcome


def shards(count, *, port=1000):
    return frozenset(Shard(f"n{i}/0", "", "10.0.0.1", port + i) for i in range(count))


def names(decision):
    return sorted(shard.name for shard in decision.shards)


def round_of(membership, outcomes, default=READY):
    """One round in which the named shards have these outcomes."""
    return membership.update_probes(
        {shard: outcomes.get(shard.name, default) for shard in membership.listed}
    )


def settled(count):
    membership = Membership()
    membership.update_listing(shards(count), fresh=True)
    assert len(round_of(membership, {}).shards) == count
    return membership


def test_nothing_is_published_before_every_shard_was_probed():
    membership = Membership()
    decision = membership.update_listing(shards(3), fresh=True)
    assert decision.shards == frozenset()
    assert "3 of 3 shards were not probed yet; nothing published yet" in decision.reason
    assert names(round_of(membership, {"n2/0": SILENT})) == ["n0/0", "n1/0"]


def test_two_failures_in_a_row_are_needed_and_a_refusal_counts_at_once():
    membership = settled(5)
    assert len(round_of(membership, {"n0/0": SILENT}).shards) == 5
    assert len(round_of(membership, {}).shards) == 5
    assert len(round_of(membership, {"n0/0": UNREADY}).shards) == 5
    decision = round_of(membership, {"n0/0": SILENT, "n1/0": REFUSED})
    assert names(decision) == ["n2/0", "n3/0", "n4/0"]
    assert "does not answer: n0/0 at 10.0.0.1:1000" in decision.reason
    assert "refuses connections: n1/0" in decision.reason
    assert len(round_of(membership, {}).shards) == 5  # one success is enough


def test_losing_more_than_half_takes_a_fresh_listing_and_three_rounds():
    membership = settled(5)
    lost = dict.fromkeys(("n0/0", "n1/0", "n2/0"), REFUSED)
    for _ in range(10):
        decision = round_of(membership, lost)
        assert len(decision.shards) == 5
        assert decision.relist
    assert "3 of 5 do not answer" in decision.reason
    assert not membership.update_listing(shards(5), fresh=True).relist
    for _ in range(AGREEING_ROUNDS - 1):
        assert len(round_of(membership, lost).shards) == 5
    assert names(round_of(membership, lost)) == ["n3/0", "n4/0"]
    # The next one to fail is doubted anew: half of all that should be there is gone.
    lost["n3/0"] = REFUSED
    assert names(round_of(membership, lost)) == ["n3/0", "n4/0"]


def test_small_steps_do_not_add_up_to_more_than_half():
    membership = settled(10)
    lost = {}
    for i in range(10):
        lost[f"n{i}/0"] = REFUSED
        round_of(membership, lost)
    assert len(membership.published) == 5


def test_a_recovery_ends_the_doubt_and_a_later_one_starts_from_nothing():
    membership = settled(3)
    lost = {"n0/0": REFUSED, "n1/0": REFUSED}
    round_of(membership, lost)
    membership.update_listing(shards(3), fresh=True)
    round_of(membership, lost)
    round_of(membership, lost)
    assert len(round_of(membership, {}).shards) == 3
    for _ in range(AGREEING_ROUNDS + 2):
        assert len(round_of(membership, lost).shards) == 3


def test_a_round_without_any_answer_changes_nothing():
    membership = settled(4)
    for _ in range(20):
        decision = round_of(membership, {}, default=SILENT)
        membership.update_listing(shards(4), fresh=True)
        assert len(decision.shards) == 4
    # Even when the network broke in the middle of a round.
    membership = settled(4)
    round_of(membership, {"n0/0": SILENT, "n1/0": SILENT})
    for _ in range(20):
        assert len(round_of(membership, {}, default=SILENT).shards) == 4


def test_a_listing_that_shrinks_is_believed_after_a_fresh_read_and_never_when_empty():
    membership = settled(5)
    decision = membership.update_listing(shards(1))
    assert len(decision.shards) == 5
    assert decision.relist
    assert round_of(membership, {}).relist, "it is asked again until it was read"
    assert names(membership.update_listing(shards(1), fresh=True)) == ["n0/0"]
    for fresh in (False, True):
        decision = membership.update_listing(frozenset(), fresh=fresh)
        assert names(decision) == ["n0/0"]
        assert decision.relist is not fresh


def test_a_few_may_leave_the_listing_without_ceremony():
    membership = settled(5)
    decision = membership.update_listing(shards(4))
    assert len(decision.shards) == 4
    assert decision.reason == "no longer listed: n4/0 at 10.0.0.1:1004"


def test_a_shard_that_moved_is_kept_until_its_new_address_was_asked():
    membership = settled(3)
    moved = {s for s in shards(3) if s.name != "n1/0"} | {Shard("n1/0", "", "10.0.0.2", 7)}
    assert membership.update_listing(moved).shards == shards(3)
    assert round_of(membership, {}).shards == moved
    heavier = frozenset(dataclasses.replace(shard, weight=2) for shard in moved)
    assert membership.update_listing(heavier).shards == heavier


def test_the_log_names_a_few_and_counts_the_rest():
    membership = Membership()
    membership.update_listing(shards(9), fresh=True)
    assert "and 4 more" in round_of(membership, {}).reason
    assert repr(membership) == "<Membership 9 listed, 9 ready, 9 published>"


POOL = [f"n{i}/0" for i in range(6)]


class Histories(RuleBasedStateMachine):
    """Random listings and probes, with the rules restated from outside."""

    def __init__(self):
        super().__init__()
        self.membership = Membership()
        self.published = frozenset()
        self.ever = set()
        self.failing = {}
        self.surely_gone = set()
        """Names that a fresh listing lacked: they leave when something can take their place."""

        self.fresh_rounds = 0
        """Rounds with an answer since the last fresh listing."""

    def accept(self, decision):
        before = {shard.name for shard in self.published}
        after = {shard.name for shard in decision.shards}
        listed = {shard.name for shard in self.membership.listed}
        assert len(after) == len(decision.shards), "a name is there once"
        assert after or not before, "never empty again"
        assert after <= listed or decision.shards == self.published
        assert 2 * len(before - after - listed - self.surely_gone) <= len(before)
        dropped_by_probes = (before - after) & listed
        should_be = self.ever & listed
        if dropped_by_probes and 2 * len(should_be & after) < len(should_be):
            assert self.fresh_rounds >= AGREEING_ROUNDS
        for name in dropped_by_probes:
            assert self.failing.get(name, 0) >= 1
        if self.published != decision.shards:
            assert decision.reason
        self.ever = (self.ever & listed) | after
        self.published = decision.shards

    @rule(chosen=st.sets(st.sampled_from(POOL)), fresh=st.booleans(), port=st.integers(1, 2))
    def list_shards(self, chosen, fresh, port):
        listing = {Shard(name, "", "10.0.0.1", port * 100 + POOL.index(name)) for name in chosen}
        if fresh:
            self.fresh_rounds = 0
            self.surely_gone = set(POOL) - chosen
        self.accept(self.membership.update_listing(listing, fresh=fresh))

    @rule(
        outcomes=st.lists(
            st.sampled_from([READY, READY, *Outcome]), min_size=len(POOL), max_size=len(POOL)
        ),
        rounds=st.integers(1, 5),
    )
    def probe(self, outcomes, rounds):
        for _ in range(rounds):
            said = {s: outcomes[POOL.index(s.name)] for s in self.membership.listed}
            answered = any(o in {READY, UNREADY} for o in said.values())
            self.fresh_rounds = self.fresh_rounds + 1 if answered else 0
            for shard, outcome in said.items():
                bad = outcome is not READY
                self.failing[shard.name] = self.failing.get(shard.name, 0) + 1 if bad else 0
            before = self.published
            self.accept(self.membership.update_probes(said))
            if not answered:
                assert before == self.published

    @rule()
    def everything_is_well(self):
        """However tangled the history: when all answer, exactly the listed are published."""
        self.probe([READY] * len(POOL), 1)
        if self.membership.listed:
            assert self.published == self.membership.listed

    @invariant()
    def what_is_said_is_what_is_kept(self):
        assert self.membership.published == self.published


TestHistories = Histories.TestCase
