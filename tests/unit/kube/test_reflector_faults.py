"""The reflector against what a real apiserver does not do on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
from aiohttp import web

from cluster import objects
from contract.kube import Scene, until
from fakes.kube import CUT, HANG, LIVE, FakeApiserver, event_line, make_status
from simplecache.kube import watch
from simplecache.kube.api import KubeApi
from simplecache.kube.watch import Timing, _Pause

QUICK = Timing(pause_min_s=0.01, pause_max_s=0.05, silence_s=0.5, settled_s=0.2)


def play(scenario):
    async def run():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            namespace = await objects.make_namespace(api)
            await scenario(fake, Scene(fake, api, namespace))

    asyncio.run(run())


def broken(status: int, **headers: str):
    body = make_status(status, "Expired" if status == 410 else "Broken")
    return lambda: web.json_response(body, status=status, headers=headers)


LISTS_AFRESH = {
    "garbage": [b"\x00\xff garbage\n"],
    "not an object": [b"[1, 2]\n"],
    "unknown type": [event_line("EXPLODED", {"metadata": {"name": "x", "resourceVersion": "9"}})],
    "no object": [b'{"type": "ADDED"}\n'],
    "no version": [event_line("ADDED", {"metadata": {"name": "x"}})],
    "no name": [event_line("ADDED", {"metadata": {"resourceVersion": "9"}})],
    "deep": [b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"\n"],
    "expired": [event_line("ERROR", make_status(410, "Expired"))],
    "gone by reason": [event_line("ERROR", make_status(500, "Expired"))],
    "huge": [b"x" * (1 << 20)] * 17,
}
WATCHES_ON = {
    "server error": [event_line("ERROR", make_status(500, "InternalError"))],
    "too many": [event_line("ERROR", make_status(429, "TooManyRequests"))],
    "cut": [CUT],
    "cut in an event": [b'{"type": "ADDED", "obj', CUT],
    "ended in an event": [b'{"type": "ADDED", "obj'],
    "half-open": [HANG],
    "ended": [b"\n\n"],
}


@pytest.mark.parametrize("script", LISTS_AFRESH.values(), ids=LISTS_AFRESH.keys())
def test_what_cannot_be_read_may_have_been_a_deletion(script):
    async def scenario(fake: FakeApiserver, scene: Scene):
        await scene.pod("a")
        fake.script_watch(*script)
        async with scene.reflecting(timing=QUICK) as mirror:
            await until(lambda: mirror.lists_total == 2, 5)
            await scene.pod("b")
            await until(lambda: len(mirror.objects) == 2, 5)
            assert mirror.faults_total == 1

    play(scenario)


@pytest.mark.parametrize("script", WATCHES_ON.values(), ids=WATCHES_ON.keys())
def test_other_faults_are_taken_up_without_a_list(script):
    async def scenario(fake: FakeApiserver, scene: Scene):
        await scene.pod("a")
        fake.script_watch(*script)
        async with scene.reflecting(timing=QUICK) as mirror:
            await scene.pod("b")
            await until(lambda: len(mirror.objects) == 2, 5)
            assert mirror.lists_total == 1

    play(scenario)


def test_events_before_a_fault_count_and_are_not_replayed():
    async def scenario(fake: FakeApiserver, scene: Scene):
        pod = await scene.pod("a")
        pod["metadata"] |= {"name": "early", "resourceVersion": pod["metadata"]["resourceVersion"]}
        fake.script_watch(event_line("ADDED", pod), CUT)
        changes = []
        async with scene.reflecting(timing=QUICK, on_change=changes.extend) as mirror:
            await scene.pod("b")
            await until(lambda: len(mirror.objects) == 3, 5)
            assert [change.key.rpartition("/")[2] for change in changes] == ["a", "early", "b"]

    play(scenario)


@pytest.mark.parametrize("status", [410, 500, 503, 429, 403])
def test_a_watch_refused_by_http(status):
    async def scenario(fake: FakeApiserver, scene: Scene):
        fake.script_watch(broken(status))
        async with scene.reflecting(timing=QUICK) as mirror:
            await until(lambda: mirror.faults_total == 1, 5)
            await scene.pod("b")
            await until(lambda: len(mirror.objects) == 1, 5)
            assert mirror.lists_total == (2 if status == 410 else 1)

    play(scenario)


BAD_LISTS = {
    "server error": broken(500),
    "no items": lambda: web.json_response({"metadata": {"resourceVersion": "5"}}),
    "no version": lambda: web.json_response({"items": []}),
    "items of nonsense": lambda: web.json_response(
        {"metadata": {"resourceVersion": "5"}, "items": [1]}
    ),
    "metadata of nonsense": lambda: web.json_response({"metadata": 7, "items": []}),
    "not json": lambda: web.Response(text="<html>hello</html>"),
    "empty": web.Response,
    "null": lambda: web.Response(text="null"),
}


@pytest.mark.parametrize("answer", BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_bad_list_never_empties_the_mirror(answer):
    async def scenario(fake: FakeApiserver, scene: Scene):
        await scene.pod("a")
        fake.answer_next("/pods", answer)
        async with scene.reflecting(timing=QUICK) as mirror:
            assert mirror.faults_total == 1  # the first list was bad already
            seen = []
            mirror._on_change = lambda _: seen.append(len(mirror.objects))
            fake.answer_next("/pods", answer)
            async with asyncio.timeout(5):
                await mirror.relist()
            assert len(mirror.objects) == 1
            assert 0 not in seen

    play(scenario)


def test_a_page_that_expires_starts_the_list_again():
    async def scenario(fake: FakeApiserver, scene: Scene):
        for number in range(5):
            await scene.pod(f"p{number}")
        timing = Timing(pause_min_s=0.01, page_objects=2)
        async with scene.reflecting(timing=timing) as mirror:
            listing, asked = fake._list, []

            def expire_second_page(*arguments):
                asked.append(arguments)
                if len(asked) == 2:
                    fake._pages.clear()
                return listing(*arguments)

            fake._list = expire_second_page
            async with asyncio.timeout(5):
                await mirror.relist()
            assert len(mirror.objects) == 5
            assert mirror.faults_total == 1

    play(scenario)


def test_a_list_that_has_no_end_is_given_up(monkeypatch):
    monkeypatch.setattr(watch, "PAGES_MAX", 3)

    def endless():
        metadata = {"resourceVersion": "5", "continue": "on"}
        return web.json_response({"metadata": metadata, "items": []})

    async def scenario(fake: FakeApiserver, scene: Scene):
        for _ in range(3):
            fake.answer_next("/pods", endless)
        async with scene.reflecting(timing=QUICK) as mirror:
            assert mirror.faults_total == 1

    play(scenario)


def test_lists_can_be_wanted_at_any_time():
    """Also in the moment in which a watch is being ended for one."""

    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(timing=QUICK) as mirror:
            await until(lambda: mirror._watching is not None, 5)
            wanted = []
            for _ in range(20):
                wanted.append(asyncio.create_task(mirror.relist()))
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await asyncio.gather(*wanted)

    play(scenario)


def test_a_list_wanted_during_a_list_is_another_one():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(timing=QUICK) as mirror:
            reading, late = mirror._read_pages, []

            async def read_and_want_more():
                if not late:
                    late.append(asyncio.create_task(mirror.relist()))
                    await asyncio.sleep(0)
                return await reading()

            mirror._read_pages = read_and_want_more
            async with asyncio.timeout(5):
                await mirror.relist()
                await late[0]
            assert mirror.lists_total == 3

    play(scenario)


def test_wanting_a_list_in_vain_can_be_given_up():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(timing=QUICK) as mirror:
            await fake.stop()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(mirror.relist(), 0.2)
            await fake.start()
            await scene.pod("a")
            await until(lambda: len(mirror.objects) == 1, 5)

    play(scenario)


def test_who_waits_for_a_list_learns_that_the_reflector_ended():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(timing=QUICK) as mirror:
            await fake.stop()
            wanted = asyncio.create_task(mirror.relist())
            await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):
            await wanted

    play(scenario)


def test_a_server_that_ends_every_watch_is_not_asked_in_a_tight_loop():
    async def scenario(fake: FakeApiserver, scene: Scene):
        for _ in range(500):
            fake.script_watch(b"\n")
        timing = Timing(pause_min_s=0.01, pause_max_s=10)
        async with scene.reflecting(timing=timing):
            await asyncio.sleep(1)
            assert fake.count_calls("GET", "/pods", watch="1") < 12

    play(scenario)


def test_a_server_that_forgets_every_version_is_not_listed_in_a_tight_loop():
    async def scenario(fake: FakeApiserver, scene: Scene):
        bookmark = event_line("BOOKMARK", {"metadata": {"resourceVersion": "3"}})
        for _ in range(500):
            fake.script_watch(bookmark, event_line("ERROR", make_status(410, "Expired")))
        timing = Timing(pause_min_s=0.01, pause_max_s=10)
        async with scene.reflecting(timing=timing) as mirror:
            await asyncio.sleep(1)
            assert mirror.lists_total < 12

    play(scenario)


def test_bookmarks_move_the_version_past_a_compaction():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(timing=QUICK) as mirror:
            await objects.make_namespace(scene.api)  # moves the version, matches nothing here
            moved_to = str(fake._version)
            await until(lambda: mirror._version == moved_to, 5)
            await fake.compact()
            mirror._watching.reschedule(asyncio.get_running_loop().time())
            await scene.pod("a")
            await until(lambda: len(mirror.objects) == 1, 5)
            assert mirror.lists_total == 1

    play(scenario)


def test_projecting_to_nothing_leaves_an_object_out():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(
            timing=QUICK, project=lambda pod: pod.get("status", {}).get("podIP")
        ) as mirror:
            await scene.pod("a")
            await scene.ready("a", "127.0.0.7")
            await until(lambda: list(mirror.objects.values()) == ["127.0.0.7"], 5)

    play(scenario)


def test_the_watch_asks_as_documented():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting(label_selector="a=b", timing=Timing()) as mirror:
            await until(lambda: fake.count_calls("GET", "/pods", watch="1") == 1, 5)
            *_, (_, _, query) = fake.calls
            assert query["allowWatchBookmarks"] == "true"
            assert query["labelSelector"] == "a=b"
            assert query["resourceVersion"] == mirror._version
            assert 240 <= int(query["timeoutSeconds"]) <= 300
            assert "sendInitialEvents" not in query

    play(scenario)


def test_its_state_reads_in_one_line():
    async def scenario(fake: FakeApiserver, scene: Scene):
        async with scene.reflecting() as mirror:
            assert repr(mirror).startswith(f"<Reflector {objects.pods_path(scene.namespace)}: 0")

    play(scenario)


def test_pauses_double_jitter_and_end_at_their_bound():
    pause = _Pause(Timing(), random.Random(7))
    taken = [pause.next_s() for _ in range(12)]
    for number, pause_s in enumerate(taken):
        base_s = min(0.05 * 2**number, 30)
        assert 0.8 * base_s <= pause_s <= 1.2 * base_s
    pause.reset()
    assert pause.next_s() <= 0.06


def test_nothing_of_a_pod_is_logged(caplog):
    async def scenario(fake: FakeApiserver, scene: Scene):
        secret = "s3cr3t-annotation"
        fake.script_watch(json.dumps({"type": "ADDED", "object": secret}).encode() + b"\n")
        fake.script_watch(secret.encode() + b"\n", LIVE)
        async with scene.reflecting(timing=QUICK) as mirror:
            await until(lambda: mirror.faults_total == 2, 5)
        assert secret not in caplog.text

    with contextlib.suppress(asyncio.CancelledError):
        play(scenario)
