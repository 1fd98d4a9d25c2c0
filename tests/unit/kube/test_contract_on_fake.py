"""The contract of ``simplecache.kube`` on the fake apiserver."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from contract.kube import ReflectorContract, ReviewContract
from fakes.kube import FakeApiserver


class _OnFake:
    @contextlib.asynccontextmanager
    async def cluster(self) -> AsyncIterator[FakeApiserver]:
        async with FakeApiserver() as self.fake:
            yield self.fake


class TestReflector(_OnFake, ReflectorContract):
    pass


class TestReview(_OnFake, ReviewContract):
    def sign(self, claims):
        return self.fake.signers[0].sign(claims)
