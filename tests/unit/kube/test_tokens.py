"""The local check of tokens: right ones pass, nothing else does, and nothing breaks it."""

from __future__ import annotations

import contextlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from fakes.tokens import Signer, b64, b64_json, make_claims, make_rsa
from simplecache.errors import Malformed
from simplecache.kube.tokens import TOKEN_MAX_BYTES, Demands, check_token, parse_keys, parse_token

NOW = 1_800_000_000.0
ISSUER = "https://issuer.test"
DEMANDS = Demands(issuer=ISSUER, audience="scs")
RSA = Signer(make_rsa(), "rsa-1")
EC = Signer(ec.generate_private_key(ec.SECP256R1()), "ec-1")
KEYS = parse_keys({"keys": [RSA.jwk(), EC.jwk()]})
CLAIMS = make_claims(ISSUER, now=NOW)


def refusal_of(text: str, now: float = NOW) -> str:
    """Why a token is refused; empty if it is not."""
    refusal = check_token(parse_token(text), KEYS, DEMANDS, now)
    return refusal.reason if refusal else ""


@pytest.mark.parametrize("signer", [RSA, EC], ids=["RS256", "ES256"])
def test_a_right_token_passes(signer):
    token = parse_token(signer.sign(CLAIMS))
    assert check_token(token, KEYS, DEMANDS, NOW) is None
    assert token.expires_at == NOW + 600


@pytest.mark.parametrize("signer", [RSA, EC], ids=["RS256", "ES256"])
def test_another_key_of_the_same_name_does_not(signer):
    other = make_rsa() if signer is RSA else ec.generate_private_key(ec.SECP256R1())
    assert "signature" in refusal_of(Signer(other, signer.key_id).sign(CLAIMS))


def test_an_unknown_key_is_said_to_be_unknown():
    assert "does not have" in refusal_of(Signer(RSA.key, "other").sign(CLAIMS))


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "RS512", "ES256", "PS256", ""])
def test_the_key_and_not_the_token_chooses_the_algorithm(algorithm):
    assert "signature" in refusal_of(RSA.sign(CLAIMS, alg=algorithm))


def test_an_unsigned_token_is_no_token():
    with pytest.raises(Malformed):
        parse_token(f"{b64_json({'alg': 'none', 'kid': 'rsa-1'})}.{b64_json(CLAIMS)}.")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://other.test"}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"aud": ["other"]}, "audience"),
        ({"aud": "scs2"}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": {"scs": 1}}, "audience"),
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 1}, "expired"),
        ({"exp": None}, "expired"),
        ({"exp": True}, "expired"),
        ({"exp": str(NOW + 600)}, "expired"),
        ({"exp": float("inf")}, "expired"),
        ({"exp": float("nan")}, "expired"),
        ({"exp": 10**400}, "expired"),
        ({"nbf": NOW + 61}, "not valid yet"),
        ({"nbf": "soon"}, "not valid yet"),
        ({"nbf": None}, "not valid yet"),
        ({"nbf": float("nan")}, "not valid yet"),
    ],
)
def test_claims(claims, reason):
    assert reason in refusal_of(RSA.sign(CLAIMS | claims))


@pytest.mark.parametrize("claims", [{"aud": "scs"}, {"aud": ["x", "scs"]}, {"nbf": NOW + 59}])
def test_claims_that_are_fine(claims):
    assert not refusal_of(RSA.sign(CLAIMS | claims))


def test_a_token_without_a_start_is_fine():
    assert not refusal_of(RSA.sign({k: v for k, v in CLAIMS.items() if k != "nbf"}))


GOOD = RSA.sign(CLAIMS)
HEAD, BODY, SIGNATURE = GOOD.split(".")
MALFORMED = {
    "empty": "",
    "one part": "abc",
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{GOOD}.{BODY}",
    "many dots": "." * 5000,
    "huge": f"{HEAD}.{'A' * TOKEN_MAX_BYTES}.{SIGNATURE}",
    "huge garbage": "\x00" * 10_000_000,
    "binary": "\x00\x01\xff" * 50,
    "not ASCII": f"{HEAD}é.{BODY}.{SIGNATURE}",
    "newline at the end": f"{GOOD}\n",
    "space": f" {GOOD}",
    "padding": f"{HEAD}=.{BODY}.{SIGNATURE}",
    "other alphabet": f"{HEAD}.{BODY}.{'+/' * 10}",
    "impossible length": f"{HEAD}.{BODY}.AAAAA",
    "header is a list": f"{b64_json([1])}.{BODY}.{SIGNATURE}",
    "header is text": f"{b64(b'hello')}.{BODY}.{SIGNATURE}",
    "header is deep": f"{b64(b'[' * 9000)}.{BODY}.{SIGNATURE}",
    "claims are null": f"{HEAD}.{b64(b'null')}.{SIGNATURE}",
    "claims are not UTF-8": f"{HEAD}.{b64(bytes([0xFF] * 9))}.{SIGNATURE}",
    "huge number": ".".join([HEAD, b64(b'{"exp":' + b"9" * 9000 + b"}"), SIGNATURE]),
    "no key id": f"{b64_json({'alg': 'RS256'})}.{BODY}.{SIGNATURE}",
    "key id of another type": f"{b64_json({'alg': 'RS256', 'kid': 1})}.{BODY}.{SIGNATURE}",
    "critical extension": RSA.sign(CLAIMS, crit=["b64"]),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(text):
    with pytest.raises(Malformed) as caught:
        parse_token(text)
    # A traceback must not carry the token either.
    assert caught.value.__cause__ is None
    assert BODY[:20] not in str(caught.value)


def test_each_token_has_one_spelling():
    """A signature of 256 bytes leaves four bits unused: 16 spellings, of which one counts."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    passed = 0
    for last in alphabet:
        try:
            passed += not refusal_of(GOOD[:-1] + last)
        except Malformed:
            continue
    assert passed == 1


@given(st.text() | st.from_regex(r"[\w-]{0,9}(\.[\w-]{0,9}){0,4}", fullmatch=True))
@example("e30.e30.")
def test_any_text_is_malformed_or_refused(text):
    with contextlib.suppress(Malformed):
        assert refusal_of(text)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("Ab_-.\x00é"))
def test_any_change_spoils_it(at, other):
    if GOOD[at] == other:
        return
    with contextlib.suppress(Malformed):
        assert refusal_of(GOOD[:at] + other + GOOD[at + 1 :])


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"keys": None},
        {"keys": {}},
        {"keys": []},
        {"keys": [RSA.jwk()] * 65},
        {"keys": [1, "x"]},
    ],
)
def test_a_key_set_without_keys_is_malformed(document):
    with pytest.raises(Malformed):
        parse_keys(document)


@pytest.mark.parametrize(
    "key",
    [
        RSA.jwk() | {"n": "A" * 3000},
        RSA.jwk() | {"n": "!!"},
        RSA.jwk() | {"n": 5},
        RSA.jwk() | {"e": "AQ"},
        RSA.jwk() | {"n": b64(b"\x05")},
        EC.jwk() | {"x": EC.jwk()["y"]},
        EC.jwk() | {"crv": "secp256k1"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        {},
    ],
    ids=json.dumps,
)
def test_other_keys_are_passed_over(key):
    found = parse_keys({"keys": [key | {"kid": "bad"}, EC.jwk(), key]})
    assert set(found) == {"ec-1"}
