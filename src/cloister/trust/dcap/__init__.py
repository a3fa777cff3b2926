"""Intel DCAP: what SGX and TDX quotes share. Quotes, certificate chains, Intel's collateral, TCB status.

Intel's "SGX ECDSA QuoteLibReference DCAP API" and "TDX DCAP Quoting Library API" (quote formats 3, 4 and 5);
"Provisioning Certification Service API v4" (collateral); "SGX PCK Certificate and CRL Profile Specification".
"""
