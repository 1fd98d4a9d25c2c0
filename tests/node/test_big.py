"""Large objects stream through a shard: its memory does not grow with them."""

import hashlib
import time

from harness import make_chunks, make_head, make_name, memory_peak_mib, noise

MIB = 1 << 20
SIZE = 1 << 30


def make_blocks():
    """1 GiB in blocks of 1 MiB, each different."""
    block = bytearray(noise(MIB))
    for number in range(SIZE // MIB):
        block[:8] = number.to_bytes(8, "little")
        yield block


def test_one_gib_in_and_out_in_little_memory(make_node):
    node = make_node().start()
    sent, got = hashlib.sha1(usedforsecurity=False), hashlib.sha1(usedforsecurity=False)
    with node.wire() as wire:
        began = time.monotonic()
        wire.send(make_head("PUT", make_name("big"), f"Content-Length: {SIZE}"))
        for block in make_blocks():
            wire.sock.sendall(block)
            sent.update(block)
        assert wire.response().status == 201
        put_s, began = time.monotonic() - began, time.monotonic()
        wire.send(make_head("GET", make_name("big")))
        assert f"content-length: {SIZE}".encode() in wire.read_head().lower()
        buffer, left = memoryview(bytearray(MIB)), SIZE
        rest = wire.read(len(wire._rest))
        got.update(rest)
        left -= len(rest)
        while left:
            count = wire.sock.recv_into(buffer)
            assert count, "the connection ended"
            got.update(buffer[:count])
            left -= count
        get_s = time.monotonic() - began
        assert got.digest() == sent.digest()
        middle = wire.request("GET", make_name("big"), f"Range: bytes={SIZE // 2 - 1}-{SIZE // 2}")
        blocks = noise(MIB)
        assert middle.body == blocks[-1:] + (SIZE // 2 // MIB).to_bytes(8, "little")[:1]
    peak = memory_peak_mib(node.pids[0])
    print(f"\n1 GiB: PUT {put_s:.1f} s, GET {get_s:.1f} s, peak memory of the shard {peak:.0f} MiB")
    assert peak < 200
    assert node.stop() == 0


def test_many_uploads_at_the_same_time_in_little_memory(make_node):
    """32 clients push at once as fast as they can; what the disk has not taken must wait outside."""
    node = make_node().start()
    body = noise(8 * MIB)
    wires = [node.wire() for _ in range(32)]
    for number, wire in enumerate(wires):
        wire.send(make_head("PUT", make_name(f"big-{number}"), "Transfer-Encoding: chunked"))
    for at in range(0, len(body), MIB):
        for wire in wires:
            wire.send(make_chunks(body[at : at + MIB], 64 << 10)[: -len(b"0\r\n\r\n")])
    for wire in wires:
        wire.send(b"0\r\n\r\n")
        assert wire.response().status == 201
    for number, wire in enumerate(wires):
        assert wire.request("GET", make_name(f"big-{number}")).body == body
    peak = memory_peak_mib(node.pids[0])
    print(f"\n32 uploads of 8 MiB: peak memory of the shard {peak:.0f} MiB")
    assert peak < 200
