"""Users of the whole cluster under load: threads that read, check every byte, and count."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import random
import threading
import time
from collections import Counter
from typing import Self

from cluster.world import Client, World


def body_of(target: str) -> bytes:
    """What is stored under a target; no two are alike."""
    return hashlib.sha256(target.encode()).digest() * 64


def fill(world: World, prefix: str, count: int, who: Client) -> list[str]:
    """Store objects; returns their targets."""
    targets = [f"{prefix}/{number}" for number in range(count)]
    for target in targets:
        status, _ = world.ask("PUT", target, who, body=body_of(target))
        assert status == 201, (target, status)
    return targets


def misses(world: World, targets: list[str], who: Client) -> list[str]:
    """The targets that are not in the cache; every byte of the others is right."""
    gone = []
    for number, target in enumerate(targets):
        status, body = world.ask("GET", target, who, at=world.envoy(number % 3))
        assert status in {200, 404}, (target, status, body)
        if status == 404:
            gone.append(target)
        else:
            assert body == body_of(target)
    return gone


class Load:
    """Reads of random targets through all Envoys, over kept connections."""

    def __init__(
        self, world: World, targets: list[str], clients: list[Client], *, pause_s: float = 0.005
    ) -> None:
        self.answers: Counter[int] = Counter()
        self.faults: list[str] = []
        """What was no answer, or not 200 nor 404."""
        self.wrong: list[str] = []
        self._targets = targets
        self._pause_s = pause_s
        self._end = threading.Event()
        self._began = time.monotonic()
        hosts = itertools.cycle([pod.ip for pod in world.kubelet.of("envoy")])
        self._threads = [
            threading.Thread(target=self._read, args=(client, next(hosts), seed))
            for seed, client in enumerate(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.faults)

    def __str__(self) -> str:
        return f"{self.total} reads, {dict(self.answers)}, faults {Counter(self.faults)}"

    def _read(self, client: Client, host: str, seed: int) -> None:
        chance = random.Random(seed)
        connection = http.client.HTTPConnection(host, 8080, timeout=10)
        while not self._end.is_set():
            target = chance.choice(self._targets)
            try:
                connection.request("GET", f"/v1/objects/{target}", headers=client.fields)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(type(error).__name__)
                connection.close()
            else:
                self.answers[answer.status] += 1
                if answer.status not in {200, 404}:
                    self.faults.append(f"{answer.status} {answer.getheader('SCS-Error')}")
                if answer.status == 200 and body != body_of(target):
                    self.wrong.append(target)
            self._end.wait(self._pause_s)
        connection.close()
