"""What the policies do to the hit ratio, and that a tenant looks the same from SQLite and memory."""

import itertools

import pytest

from simplecache.config import EVICTION_POLICIES
from simplecache.simulate.eviction import MemoryResidents, belady, run
from simplecache.simulate.traces import make_traces
from simplecache.store.index import Index
from simplecache.store.notes import Notes, group_number, group_of, target_hash
from simplecache.store.policies import MAIN, POLICIES, SMALL
from simplecache.store.repair import Row
from simplecache.store.residents import SqlResidents
from simplecache.store.usage import Usage

OBJECTS = 2000
TRACES = {trace.name: trace for trace in make_traces(OBJECTS, seed=5)}


def ratio(policy, name, share):
    trace = TRACES[name]
    hits = list(run(policy, trace.accesses, int(share * trace.working_set)))
    counted = hits[trace.count_from : trace.count_to]
    return sum(counted) / len(counted)


def optimum(name, share):
    trace = TRACES[name]
    hits = list(belady(trace.accesses, int(share * trace.working_set)))
    counted = hits[trace.count_from : trace.count_to]
    return sum(counted) / len(counted)


def test_the_configuration_knows_just_the_policies_that_there_are():
    assert set(EVICTION_POLICIES) == set(POLICIES)


@pytest.mark.parametrize(("share", "least"), [(0.5, 0.47), (0.8, 0.77), (0.95, 0.93)])
def test_freshly_shuffled_epochs_keep_the_share_that_fits(share, least):
    assert ratio("steady", "shuffled epochs", share) >= least
    assert ratio("steady", "sequential epochs", share) >= least
    assert ratio("steady", "sequential, 50 directories", share) >= least


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.15), (0.8, 0.48)])
def test_lru_loses_what_theory_says(share, expected):
    assert abs(ratio("lru", "shuffled epochs", share) - expected) < 0.03


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_another_data_set_is_as_well_off_within_two_epochs(share):
    same = ratio("steady", "shuffled epochs", share)
    for epoch in (2, 3):
        swapped = ratio("steady", f"data set swapped, new directory, epoch {epoch}", share)
        assert abs(swapped - same) <= 0.03


@pytest.mark.parametrize("name", ["Zipf 0.8", "Zipf 1.0", "scan + hot set"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_skewed_loads_are_within_0_03_of_the_best_policy(name, share):
    best = max(ratio(policy, name, share) for policy in POLICIES)
    assert ratio("steady", name, share) >= best - 0.03


@pytest.mark.parametrize("name", ["shuffled epochs", "Zipf 1.0"])
def test_nobody_beats_belady(name):
    best = optimum(name, 0.5)
    assert all(ratio(policy, name, 0.5) <= best + 1e-9 for policy in POLICIES)


class SqlTenant:
    """The store's residents, driven as the simulator drives its own."""

    def __init__(self, tmp_path):
        self.index = Index(tmp_path / "index.db")
        self.usage = Usage([])
        self.residents = SqlResidents(self.index, self.usage, ("bkt", "ns"))

    def add(self, target, disk, queue):
        row = Row(
            target_hash(target).to_bytes(8, "big") * 2, "bkt", "ns", target, disk, disk, 1, 1, 0,
            group_number(group_of(target)), queue, self.index.next_seq(),
        )  # fmt: skip
        self.usage.replace(None, row)
        self.index.put(row)
        self.index.flush()

    def remove(self, entry):
        self.usage.replace(self.residents.rows[entry.id], None)
        self.index.delete(entry.id)
        self.index.flush()


class MemoryTenant:
    def __init__(self, _tmp_path):
        self.residents = MemoryResidents()

    def add(self, target, disk, queue):
        self.residents.add(target_hash(target), group_of(target), disk, queue)

    def remove(self, entry):
        self.residents.remove(entry)


@pytest.fixture(params=[SqlTenant, MemoryTenant])
def tenant(request, tmp_path):
    tenant = request.param(tmp_path)
    yield tenant
    if isinstance(tenant, SqlTenant):
        tenant.index.close()


def keys(entries):
    return [entry.key for entry in entries]


def test_a_tenant_looks_the_same_from_sqlite_and_memory(tenant):
    targets = [b"/v1/objects/bkt/d%d/%d" % (i % 3, i) for i in range(30)]
    for i, target in enumerate(targets):
        tenant.add(target, 100 + i, MAIN if i % 5 else SMALL)
    residents = tenant.residents
    main = [target_hash(t) for i, t in enumerate(targets) if i % 5]
    small = [target_hash(t) for i, t in enumerate(targets) if not i % 5]
    assert residents.disk == sum(100 + i for i in range(30))
    assert residents.queue_disk(SMALL) == sum(100 + i for i in range(0, 30, 5))
    assert keys(residents.after(-1, MAIN, 5)) == main[:5]
    assert keys(residents.after(residents.after(-1, MAIN, 5)[-1].seq, MAIN, 100)) == main[5:]
    group = b"/v1/objects/bkt/d1/"
    assert set(keys(residents.of_group(group, 100))) == {target_hash(t) for t in targets[1::3]}
    assert len(residents.of_group(group, 4)) == 4
    assert residents.of_group(b"/nowhere/", 4) == []
    assert len(residents.sample(8)) == 8
    assert set(keys(residents.sample(20))) <= {target_hash(t) for t in targets}

    first = residents.after(-1, SMALL, 1)[0]
    residents.requeue(first, MAIN)
    assert keys(residents.after(-1, MAIN, 100)) == [*main, small[0]]
    assert keys(residents.after(-1, SMALL, 100)) == small[1:]
    gone = residents.after(-1, MAIN, 2)
    for entry in gone:
        tenant.remove(entry)
    assert keys(residents.after(-1, MAIN, 100)) == [*main[2:], small[0]]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_finds_victims_until_nothing_is_left(policy, tenant):
    notes = Notes(1 << 12)
    chosen = POLICIES[policy](notes)
    for i in range(40):
        target = b"/v1/objects/bkt/%d" % i
        notes.take([target] * (i % 4), 40)
        tenant.add(target, 100, chosen.arrived(target_hash(target)))
    seen = set()
    for _ in itertools.repeat(None, 1000):
        victims = chosen.victims(tenant.residents, 3)
        if not victims:
            break
        for victim in victims:
            assert victim.key not in seen
            seen.add(victim.key)
            tenant.remove(victim)
    assert len(seen) == 40
    assert tenant.residents.disk == 0
