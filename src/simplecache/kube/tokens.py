"""A service account token read and checked without asking anybody: pure.

It is a signed JWT (RFC 7519, 7515). What is accepted is what Kubernetes issues: RS256 or an ECDSA
algorithm, a key id, a number for the end of life. The algorithm comes from the *key*: a token that
claims another one is refused, which closes the door to ``none`` and to HMAC with a public key.

A token that passes may still be worthless: its pod may be gone. Only the apiserver knows, so this
check stands before the review and never in its place.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from simplecache.errors import Malformed
from simplecache.kube.verdicts import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_MAX_BYTES: Final = 16 << 10
"""Kubernetes' have 1 to 2 KiB; the wire's limit for a whole header is 32 KiB."""

KEYS_MAX: Final = 64
"""An apiserver shows the keys of one or two rotations."""

NOT_BEFORE_LEEWAY_S: Final = 60.0
"""Kubernetes allows its own clock as much. A token fresh from the apiserver must not be refused by
a node whose clock is behind. For a token's end there is no leeway: kubelet renews at 80 %."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_SHAPE: Final = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]+)", re.ASCII)
_CURVES: Final[Mapping[str, tuple[str, ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    "P-256": ("ES256", ec.SECP256R1(), hashes.SHA256()),
    "P-384": ("ES384", ec.SECP384R1(), hashes.SHA384()),
    "P-521": ("ES512", ec.SECP521R1(), hashes.SHA512()),
}
"""JWK curve -> algorithm, curve, hash (RFC 7518, sections 3.4 and 6.2.1.1)."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart; nothing in it is verified."""

    algorithm: str
    key_id: str
    claims: Mapping[str, Any] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def expires_at(self) -> float | None:
        """Its end in seconds since the epoch, or None if it tells none that makes sense."""
        return _number(self.claims.get("exp"))


@dataclass(frozen=True, slots=True)
class Key:
    """A public key with the one algorithm it is used with."""

    algorithm: str
    public: PublicKey
    hash: hashes.HashAlgorithm


@dataclass(frozen=True, slots=True)
class Demands:
    """What a token must claim."""

    issuer: str
    audience: str


def parse_token(text: str) -> Token:
    """Take a token apart.

    Raises:
        Malformed: this is no JWT. The text says what is wrong and never quotes the token.
    """
    if len(text) > TOKEN_MAX_BYTES:
        raise Malformed(f"the token has more than {TOKEN_MAX_BYTES} bytes")
    found = _SHAPE.fullmatch(text)
    if not found:
        raise Malformed("the token is not three parts of base64url with dots between them")
    header = _parse_part(found[1])
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(key_id, str) or "crit" in header:
        raise Malformed("the token's header names no algorithm and key, or has critical extensions")
    return Token(
        algorithm=algorithm,
        key_id=key_id,
        claims=_parse_part(found[2]),
        signed=text[: found.end(2)].encode(),
        signature=_decode(found[3]),
    )


def parse_keys(document: Mapping[str, Any]) -> dict[str, Key]:
    """The usable keys of a JWK set (RFC 7517), by key id; others are passed over.

    Raises:
        Malformed: this is no key set, or one with too many keys or without a usable one.
    """
    entries = document.get("keys")
    if not isinstance(entries, list) or len(entries) > KEYS_MAX:
        raise Malformed(f"the key set has no list of at most {KEYS_MAX} keys")
    keys = {}
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("kid"), str):
            try:
                key = _parse_key(entry)
            except (Malformed, ValueError, TypeError, OverflowError):
                continue
            if key is not None:
                keys[entry["kid"]] = key
    if not keys:
        raise Malformed("the key set has no usable key")
    return keys


def check_token(
    token: Token, keys: Mapping[str, Key], demands: Demands, now: float
) -> Refusal | None:
    """Why a token is not good, as far as can be told here; None if nothing speaks against it.

    Args:
        token: see :func:`parse_token`.
        keys: see :func:`parse_keys`.
        demands: what it must claim.
        now: seconds since the epoch.
    """
    key = keys.get(token.key_id)
    if key is None:
        return Refusal("the token is signed with a key that this cluster does not have")
    if token.algorithm != key.algorithm or not _is_signed_by(token, key):
        return Refusal("the token's signature is wrong")
    return _check_claims(token, demands, now)


def _check_claims(token: Token, demands: Demands, now: float) -> Refusal | None:
    claims = token.claims
    audiences = claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    if claims.get("iss") != demands.issuer:
        return Refusal("the token is of another issuer")
    if not isinstance(audiences, list) or demands.audience not in audiences:
        return Refusal(f'the token is not for the audience "{demands.audience}"')
    if token.expires_at is None or token.expires_at <= now:
        return Refusal("the token has expired")
    not_before = claims.get("nbf", 0)
    if _number(not_before) is None or not_before > now + NOT_BEFORE_LEEWAY_S:
        return Refusal("the token is not valid yet")
    return None


def _is_signed_by(token: Token, key: Key) -> bool:
    try:
        if isinstance(key.public, rsa.RSAPublicKey):
            key.public.verify(token.signature, token.signed, padding.PKCS1v15(), key.hash)
        else:
            half = (key.public.key_size + 7) // 8
            if len(token.signature) != 2 * half:
                return False
            r, s = (int.from_bytes(token.signature[at : at + half]) for at in (0, half))
            key.public.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(key.hash))
    except InvalidSignature:
        return False
    return True


def _parse_key(entry: Mapping[str, Any]) -> Key | None:
    """One JWK, or None for a kind that is not used with service accounts."""
    if entry.get("kty") == "RSA":
        numbers = rsa.RSAPublicNumbers(e=_integer(entry.get("e")), n=_integer(entry.get("n")))
        return Key("RS256", numbers.public_key(), hashes.SHA256())
    if entry.get("kty") == "EC" and entry.get("crv") in _CURVES:
        algorithm, curve, digest = _CURVES[entry["crv"]]
        point = ec.EllipticCurvePublicNumbers(
            _integer(entry.get("x")), _integer(entry.get("y")), curve
        )
        return Key(algorithm, point.public_key(), digest)
    return None


def _integer(text: object) -> int:
    if not isinstance(text, str) or len(text) > 2048:
        raise Malformed("a key's number is no text or too long")
    return int.from_bytes(_decode(text))


def _parse_part(text: str) -> dict[str, Any]:
    try:
        document = json.loads(_decode(text))
    except (ValueError, RecursionError):
        # Without the cause, whose text or object would hold a part of the token.
        raise Malformed("a part of the token is not JSON") from None
    if not isinstance(document, dict):
        raise Malformed("a part of the token is not a JSON object")
    return document


def _decode(text: str) -> bytes:
    """Strict base64url: each value has one spelling, so one token is one cache entry."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise Malformed("a part of the token is not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != text.encode():
        raise Malformed("a part of the token is not in base64url's one proper spelling")
    return raw


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
