"""Collateral from the vendors' services: the verifier side's only network. Verifiers get values and never call this.

`fetcher` answers a `Need` from the cache or a service. Nothing here is a verdict: answers are checked as far as they
speak for themselves, so that no garbage is kept, and a verifier checks them again.
"""
