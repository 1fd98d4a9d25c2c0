"""The xDS session: each trap by name, then a model Envoy with random timing."""

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from simplecache.control.session import Request, Session
from simplecache.control.snapshot import CDS, EDS, LDS, RDS, TYPES, ResourceSet, Snapshot

NAMES = {CDS: "scs", EDS: "scs", LDS: "data", RDS: "scs"}
ASKED = {CDS: (), EDS: ("scs",), LDS: (), RDS: ("scs",)}


def snapshot(**versions):
    kinds = dict(zip(("cds", "eds", "lds", "rds"), TYPES, strict=True))
    sets = {
        kinds[kind]: ResourceSet(NAMES[kinds[kind]], str(version), b"%d" % version)
        for kind, version in ({"cds": 1, "eds": 1, "lds": 1, "rds": 1} | versions).items()
    }
    return Snapshot("v", frozenset(), sets, b"")


def sent(responses):
    return [(response.type_url, response.version) for response in responses]


def subscribed(current=None):
    """A session in which everything was asked and acknowledged."""
    session = Session(current or snapshot())
    nonces = {}
    for kind in TYPES:
        (response,) = session.receive(Request(kind, names=ASKED[kind]))
        assert session.receive(ack(response)) == []
        nonces[kind] = response.nonce
    return session, nonces


def ack(response, error=None, version=None):
    return Request(
        response.type_url,
        response.version if version is None else version,
        response.nonce,
        ASKED[response.type_url],
        error,
    )


def test_the_first_request_is_answered_even_if_it_has_the_version_already():
    session = Session(snapshot())
    (response,) = session.receive(Request(EDS, "1", "", ("scs",)))
    assert response.version == "1"
    assert response.body == b"1"


def test_without_a_snapshot_the_subscription_waits():
    session = Session()
    assert session.receive(Request(CDS)) == []
    assert session.receive(Request(EDS, names=("scs",))) == []
    assert sent(session.update(snapshot())) == [(CDS, "1"), (EDS, "1")]


def test_an_update_comes_in_order_and_only_where_something_changed():
    session, _ = subscribed()
    assert sent(session.update(snapshot(eds=2))) == [(EDS, "2")]
    assert sent(session.update(snapshot(eds=2))) == []
    assert sent(session.update(snapshot(cds=2, eds=3, lds=2, rds=2))) == [
        (CDS, "2"), (EDS, "3"), (LDS, "2"), (RDS, "2"),
    ]  # fmt: skip


def test_a_parent_is_followed_by_its_child_even_if_that_is_unchanged():
    session, _ = subscribed()
    assert sent(session.update(snapshot(cds=2))) == [(CDS, "2"), (EDS, "1")]
    assert sent(session.update(snapshot(cds=2, lds=5))) == [(LDS, "5"), (RDS, "1")]


def test_a_nonce_that_was_acknowledged_already_is_a_new_subscription():
    session, nonces = subscribed()
    again = Request(EDS, "1", nonces[EDS], ("scs",))
    (response,) = session.receive(again)
    assert response.version == "1"
    assert response.nonce != nonces[EDS]
    assert session.receive(again) == [], "now it is stale"


def test_a_stale_nonce_is_ignored():
    session, nonces = subscribed()
    session.update(snapshot(eds=2))
    assert session.receive(Request(EDS, "1", nonces[EDS], ("scs",))) == []
    assert session.acks[EDS] == 1


def test_a_rejection_is_counted_and_not_answered_and_the_next_version_is_sent():
    session, _ = subscribed()
    (response,) = session.update(snapshot(eds=2))
    assert session.receive(ack(response, error="bad", version="1")) == []
    assert session.nacks[EDS] == 1
    assert session.update(snapshot(eds=2)) == []
    assert sent(session.update(snapshot(eds=3))) == [(EDS, "3")]


def test_an_acknowledgement_that_adds_a_name_is_a_subscription_too():
    session = Session(snapshot())
    assert session.receive(Request(EDS, names=("other",))) == []
    assert sent(session.receive(Request(EDS, names=("other", "scs")))) == [(EDS, "1")]


@pytest.mark.parametrize("names", [(), ("*",), ("scs", "x")])
def test_wildcards(names):
    assert sent(Session(snapshot()).receive(Request(CDS, names=names))) == [(CDS, "1")]


def test_nothing_is_sent_for_other_names_and_other_types():
    session = Session(snapshot())
    assert session.receive(Request(EDS)) == []
    assert session.receive(Request(CDS, names=("other",))) == []
    assert session.receive(Request("type.googleapis.com/other")) == []
    assert "Cluster" in repr(session)
    assert sent(session.update(snapshot(cds=2, eds=2))) == []


class Timing(RuleBasedStateMachine):
    """An Envoy that acknowledges late, rejects, subscribes again and reconnects as it likes."""

    def __init__(self):
        super().__init__()
        self.versions = {"cds": 1, "eds": 1, "lds": 1, "rds": 1}
        self.current = snapshot()
        self.connect()

    def connect(self):
        self.session = Session(self.current)
        self.wire = []
        self.seen_nonces = set()
        self.last = {}
        """Type -> the last response Envoy read, acknowledged or rejected."""
        self.rejected = {}
        self.open = set()

    def carry(self, responses):
        order = [TYPES.index(response.type_url) for response in responses]
        assert order == sorted(set(order)), "in order, each type once"
        for response in responses:
            assert response.nonce not in self.seen_nonces, "a nonce is used once"
            self.seen_nonces.add(response.nonce)
        kinds = [response.type_url for response in responses]
        if len(kinds) > 1 or not self.open:
            for parent, child in ((CDS, EDS), (LDS, RDS)):
                assert parent not in kinds or child in kinds or child not in self.open
        self.wire += responses

    @rule(kind=st.sampled_from(TYPES))
    def subscribe(self, kind):
        if kind not in self.open:
            self.open.add(kind)
            version = self.last[kind].version if kind in self.last else ""
            responses = self.session.receive(Request(kind, version, "", ASKED[kind]))
            assert sent(responses) == [(kind, self.current.sets[kind].version)]
            self.carry(responses)

    @rule(kind=st.sampled_from(("cds", "eds", "lds", "rds")))
    def change(self, kind):
        self.versions[kind] += 1
        self.current = snapshot(**self.versions)
        self.carry(self.session.update(self.current))

    @precondition(lambda self: self.wire)
    @rule(rejects=st.booleans())
    def read_one(self, rejects):
        response = self.wire.pop(0)
        kind = response.type_url
        self.last[kind] = response
        before = self.session.nacks[kind]
        answers = self.session.receive(ack(response, "no" if rejects else None))
        assert answers == []
        if rejects:
            self.rejected[kind] = response.version
        else:
            self.rejected.pop(kind, None)
        pending = any(other.type_url == kind for other in self.wire)
        assert self.session.nacks[kind] == before + (rejects and not pending)

    @rule(kind=st.sampled_from(TYPES))
    def subscribe_again(self, kind):
        """The same nonce, version and names once more, whatever is on the wire."""
        if kind in self.last and kind in self.open:
            self.carry(self.session.receive(ack(self.last[kind])))

    @rule()
    def reconnect(self):
        last = self.last
        self.connect()
        for kind in TYPES:
            if kind in last:
                self.open.add(kind)
                request = Request(kind, last[kind].version, "", ASKED[kind])
                self.carry(self.session.receive(request))

    @invariant()
    def the_wire_ends_in_what_is_in_force(self):
        """Whatever was lost in between: once all is read, Envoy has the present version."""
        for kind in self.open:
            on_wire = [r.version for r in self.wire if r.type_url == kind]
            newest = on_wire[-1] if on_wire else self.last[kind].version
            assert newest == self.current.sets[kind].version


TestTiming = Timing.TestCase
