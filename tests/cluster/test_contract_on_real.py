"""The contract of ``simplecache.kube`` on a real apiserver."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives import serialization

from cluster.apiserver import RealCluster
from contract.kube import ReflectorContract, ReviewContract
from fakes.tokens import Signer


class _OnReal:
    @pytest.fixture(autouse=True)
    def _use(self, real: RealCluster) -> None:
        self.real = real

    @contextlib.asynccontextmanager
    async def cluster(self) -> AsyncIterator[RealCluster]:
        yield self.real
        # A call that was cancelled half-way leaves a TLS connection that says farewell in its own
        # time; a loop that is closed before makes a warning of it, and warnings are errors.
        await asyncio.sleep(0.2)


class TestReflector(_OnReal, ReflectorContract):
    pass


class TestReview(_OnReal, ReviewContract):
    def sign(self, claims):
        key = serialization.load_pem_private_key(self.real.pki.account_key.read_bytes(), None)
        return Signer(key, self.real.key_id()).sign(claims)
