"""The Kubernetes API: the only part that talks to it.

``config`` says how to reach an apiserver, ``credentials`` keeps tokens and CAs fresh, ``api`` makes
the calls. On it rest ``watch`` (a mirror of objects) and ``review`` (whose token is this?, with the
local check of ``jwks`` before it, which spares the apiserver forged tokens). Their pure halves are
``mirror``, ``judge``, ``verdicts`` and ``tokens``.
"""
