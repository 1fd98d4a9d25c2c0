"""The scheduler alone: shares, order, nobody starved, nobody forgotten. No loop, no clock."""

import gc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from simplecache.server.fair import CALM_S, REQUEST_COST, TURN_REQUESTS, Fair, price

NAMES = ("a", "b", "c", "d")


class Connection:
    """As the real one: requests in order, of one tenant or of several; one wait at a time."""

    def __init__(self, shard, requests):
        self.shard = shard
        self.requests = deque(requests)
        self.is_in_line = False
        self.in_line_of = None
        self.is_gone = False
        self.answered = []

    def pump(self):
        """Answer what may be answered; take a place in line for the rest."""
        shard = self.shard
        while self.requests:
            name, size = self.requests[0]
            tenant = shard.tenants[name]
            if tenant.credit <= 0 and not shard.fair.admit(tenant):
                self.in_line_of = tenant
                shard.fair.wait(tenant, self)
                return
            tenant.credit -= 1
            tenant.used += (REQUEST_COST + size) * shard.prices[name]
            self.answered.append(self.requests.popleft())
            shard.served[name] += REQUEST_COST + size
            shard.order.append(name)

    def take_turn(self):
        assert not self.is_gone
        self.pump()


class Shard:
    def __init__(self, weights=None, **options):
        weights = weights or dict.fromkeys(NAMES, 1)
        heaviest = max(weights.values())
        self.fair = Fair(**options)
        self.tenants = {name: self.fair.tenant(name) for name in weights}
        self.prices = {name: price(weight, heaviest) for name, weight in weights.items()}
        for name, tenant in self.tenants.items():
            tenant.price = self.prices[name]
        self.served = dict.fromkeys(weights, 0)
        self.order = []
        self.now = 0.0

    def turn(self, after_s=0.0001):
        self.now += after_s
        return self.fair.turn(self.now)

    def saturate(self, connections, turns, size=lambda number: 4096):
        """Closed loops: whoever was answered asks again, before the next turn."""
        peers = [Connection(self, []) for count in connections.values() for _ in range(count)]
        whose = [name for name, count in connections.items() for _ in range(count)]
        number = 0
        for turn in range(turns):
            if turn == turns // 5:
                self.served = dict.fromkeys(self.served, 0)  # the start is over
            for peer, name in zip(peers, whose, strict=True):
                if not peer.requests:
                    number += 1
                    peer.requests.append((name, size(number)))
                    peer.pump()
            self.turn()
        return peers


# -- when nobody competes ------------------------------------------------------------------


def test_one_tenant_alone_never_waits():
    shard = Shard()
    peer = Connection(shard, [("a", 0)] * 10_000)
    peer.pump()
    assert len(peer.answered) == 10_000
    assert not shard.fair.is_contended
    assert shard.fair.waited == 0


def test_off_nobody_waits():
    shard = Shard(is_on=False)
    peers = [Connection(shard, [(name, 1 << 20)] * 100) for name in NAMES]
    for peer in peers:
        peer.pump()
        assert len(peer.answered) == 100
    assert not shard.fair.is_contended


def test_after_a_calm_time_the_one_that_is_left_is_alone_again():
    shard = Shard()
    shard.saturate({"a": 20, "b": 1}, 10)
    assert shard.fair.is_contended
    for _ in range(50):
        peer = Connection(shard, [("a", 0)] * 30)
        peer.pump()
        shard.turn(CALM_S / 10)
        if not shard.fair.is_contended:
            break
    assert not shard.fair.is_contended
    while shard.turn():
        pass
    peer = Connection(shard, [("a", 0)] * 1000)
    peer.pump()
    assert len(peer.answered) == 1000


def test_those_in_line_when_calm_returns_are_served_in_bounded_turns():
    shard = Shard()
    shard.saturate({"a": 200, "b": 1}, 3)
    shard.turn(CALM_S)
    before = shard.fair.waiting
    assert before > 100
    shard.turn(2 * CALM_S)
    assert before - TURN_REQUESTS <= shard.fair.waiting + 1
    while shard.turn():
        pass
    assert shard.fair.waiting == 0


# -- shares --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    weights=st.fixed_dictionaries({name: st.sampled_from([0.5, 1, 2, 3, 7]) for name in NAMES}),
    connections=st.fixed_dictionaries({name: st.integers(30, 60) for name in NAMES}),
    sizes=st.lists(st.sampled_from([0, 4096, 100 << 10, 256 << 10]), min_size=1, max_size=5),
)
def test_saturating_tenants_share_by_weight_whatever_their_connections(weights, connections, sizes):
    shard = Shard(weights)
    shard.saturate(connections, 300, lambda number: sizes[number % len(sizes)])
    total, whole = sum(shard.served.values()), sum(weights.values())
    for name, weight in weights.items():
        assert shard.served[name] / total == pytest.approx(weight / whole, rel=0.1, abs=0.01)


def test_a_tenant_of_large_requests_gets_no_more_bytes_than_one_of_small():
    shard = Shard({"a": 1, "b": 1})
    shard.saturate({"a": 1, "b": 1}, 2)  # they compete
    shard.served = {"a": 0, "b": 0}
    for name, size, count in (("a", 256 << 10, 40), ("b", 0, 4)):
        for _ in range(count):
            Connection(shard, [(name, size)] * 5000).pump()
    for _ in range(200):
        shard.turn()
    assert shard.served["a"] == pytest.approx(shard.served["b"], rel=0.05)


def test_sixty_four_connections_win_nothing_over_one():
    """The one is answered after what was in progress: a few requests, not sixty-four."""
    shard = Shard({"greedy": 1, "modest": 1})
    greedy = [Connection(shard, []) for _ in range(64)]
    between = []
    for _ in range(300):
        for peer in greedy:
            if not peer.requests:
                peer.requests.append(("greedy", 4096))
                peer.pump()
        modest = Connection(shard, [("modest", 4096)])
        modest.pump()
        start = shard.order.count("greedy")
        while not modest.answered:
            shard.turn()
        between.append(shard.order.count("greedy") - start)
        shard.turn()
    assert max(between[1:]) <= TURN_REQUESTS
    assert sum(between) / len(between) < 1


def test_idling_saves_nothing_up():
    shard = Shard({"a": 1, "b": 1})
    shard.saturate({"a": 30, "b": 30}, 10)
    while shard.turn():
        pass
    shard.saturate({"a": 30}, 50)  # b sleeps
    shard.saturate({"a": 30, "b": 30}, 200)
    assert shard.served["b"] / shard.served["a"] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("ratio", [1, 3, 1000, 10**6])
def test_prices_are_as_fine_as_weights(ratio):
    assert price(1, ratio) / price(ratio, ratio) == pytest.approx(ratio, rel=0.001)


def test_the_light_one_is_not_starved_by_one_a_thousand_times_as_heavy():
    shard = Shard({"a": 1000, "b": 1})
    shard.saturate({"a": 30, "b": 30}, 2000)
    assert shard.served["b"] > 0


# -- whatever happens ----------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Connections come, ask for several tenants' objects, and die; turns pass; the clock goes on."""

    def __init__(self):
        super().__init__()
        self.shard = Shard({"a": 1, "b": 3, "c": 0.1, "d": 1})
        self.peers = []
        self.asked = {}

    @rule(
        requests=st.lists(
            st.tuples(st.sampled_from(NAMES), st.sampled_from([0, 4096, 1 << 20])),
            min_size=1,
            max_size=12,
        )
    )
    def connect(self, requests):
        peer = Connection(self.shard, requests)
        self.peers.append(peer)
        self.asked[peer] = list(requests)
        peer.pump()

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def ask_more(self, data):
        peer = data.draw(st.sampled_from(self.peers))
        more = [(data.draw(st.sampled_from(NAMES)), 4096)]
        peer.requests.extend(more)
        self.asked[peer] += more
        if not peer.is_in_line:
            peer.pump()

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def die(self, data):
        peer = data.draw(st.sampled_from(self.peers))
        self.peers.remove(peer)
        peer.is_gone = True
        if peer.is_in_line:
            self.shard.fair.leave(peer.in_line_of, peer)
        del self.asked[peer]

    @rule(after_s=st.sampled_from([0.0, 0.0001, 0.05, 1.0]))
    def turn(self, after_s):
        before = len(self.shard.order)
        had = self.shard.fair.waiting
        follows = self.shard.turn(after_s)
        assert follows == (self.shard.fair.waiting > 0)
        if had:
            assert len(self.shard.order) > before  # work-conserving
        bound = 3 * TURN_REQUESTS if self.shard.fair.is_contended else 10_000
        assert len(self.shard.order) - before <= bound

    @rule()
    def charge(self):
        self.shard.fair.charge(self.shard.tenants["b"], 1 << 20)

    @invariant()
    def order_is_kept_and_nothing_is_lost(self):
        for peer in self.peers:
            assert peer.answered + list(peer.requests) == self.asked[peer]
            assert peer.is_in_line == bool(peer.requests)

    @invariant()
    def the_count_of_those_who_wait_is_right(self):
        assert self.shard.fair.waiting == sum(peer.is_in_line for peer in self.peers)
        for tenant in self.shard.tenants.values():
            assert len(tenant.queue) <= 2 * len(self.peers) + 1

    def teardown(self):
        for _ in range(10_000):
            if not self.shard.turn():
                break
        assert all(not peer.requests for peer in self.peers)  # nobody is starved


TestMachine = Machine.TestCase
TestMachine.settings = settings(deadline=None, max_examples=40, stateful_step_count=50)


def test_a_thousand_dead_connections_leave_the_queue():
    shard = Shard({"a": 1, "b": 1})
    shard.saturate({"a": 5, "b": 5}, 5)
    peers = [Connection(shard, [("a", 0)]) for _ in range(1000)]
    for peer in peers:
        peer.pump()
    for peer in peers:
        if peer.is_in_line:
            shard.fair.leave(peer.in_line_of, peer)
    assert len(shard.tenants["a"].queue) < 30


def test_a_tenant_that_nothing_refers_to_is_forgotten():
    fair = Fair()
    alone = fair.tenant("alone")
    fair.admit(alone)
    fair.admit(fair.tenant("other"))
    assert fair.tenant("alone") is alone
    for number in range(1000):
        fair.tenant(f"namespace {number}")
    gc.collect()
    assert len(fair._tenants) < 5
