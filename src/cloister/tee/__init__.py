"""Who signs: one folder for each trusted execution environment.

`TEES` names the folders whose evidence this package can verify, `FORMATS` the formats of evidence in them, each of
which begins with its folder's name. They are explicit tuples and not entry points: installing a package must never add
a permissive verifier.
"""

TEES: tuple[str, ...] = ("nitro", "snp", "tdx", "sgx", "nvidia", "ita", "azure", "google")
FORMATS: tuple[str, ...] = (
    *("nitro", "snp", "tdx", "sgx", "nvidia-gpu", "nvidia-nras", "ita"),
    *("azure-vtpm", "azure-maa", "google-vtpm", "google-space"),
)
