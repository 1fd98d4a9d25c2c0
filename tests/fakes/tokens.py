"""Makes service account tokens, right ones and wrong ones."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def b64_json(document: Any) -> str:
    return b64(json.dumps(document).encode())


def b64_int(number: int) -> str:
    return b64(number.to_bytes((number.bit_length() + 7) // 8))


def make_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Signer:
    """A private key with its id."""

    key: PrivateKey
    key_id: str

    @property
    def algorithm(self) -> str:
        return "RS256" if isinstance(self.key, rsa.RSAPrivateKey) else "ES256"

    def jwk(self) -> dict[str, str]:
        base = {"use": "sig", "kid": self.key_id, "alg": self.algorithm}
        numbers = self.key.public_key().public_numbers()
        if isinstance(numbers, rsa.RSAPublicNumbers):
            return base | {"kty": "RSA", "n": b64_int(numbers.n), "e": b64_int(numbers.e)}
        x, y = (b64(part.to_bytes(32)) for part in (numbers.x, numbers.y))
        return base | {"kty": "EC", "crv": "P-256", "x": x, "y": y}

    def sign(self, claims: Any, **header: Any) -> str:
        head = {"alg": self.algorithm, "kid": self.key_id} | header
        signed = f"{b64_json(head)}.{b64_json(claims)}"
        if isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        else:
            r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
            signature = r.to_bytes(32) + s.to_bytes(32)
        return f"{signed}.{b64(signature)}"


def make_claims(
    issuer: str, *, audience: str = "scs", now: float | None = None, **more: Any
) -> dict[str, Any]:
    start = time.time() if now is None else now
    return {
        "iss": issuer,
        "aud": [audience],
        "iat": int(start),
        "nbf": int(start),
        "exp": int(start) + 600,
        "sub": "system:serviceaccount:prj-a:default",
    } | more
