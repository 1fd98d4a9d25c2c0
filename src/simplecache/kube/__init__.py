"""The Kubernetes API: the only part that talks to it.

``config`` says how to reach an apiserver, ``credentials`` keeps tokens and CAs fresh, ``api`` makes
the calls. On it rest ``watch`` (a mirror of objects; ``mirror`` is its pure half) and ``review``
(whose token is this?), with ``verdicts`` as its pure cache and ``jwks`` as the local check that
spares the apiserver forged tokens.
"""
