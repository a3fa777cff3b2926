"""Who signs: one folder for each trusted execution environment.

`TEES` names the ones whose evidence this package can verify. It is an explicit tuple and not an entry point:
installing a package must never add a permissive verifier.
"""

TEES: tuple[str, ...] = ("nitro",)
