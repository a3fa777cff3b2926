"""Intel SGX: quotes of enclaves."""

MEDIA_TYPE = "application/vnd.cloister.sgx-quote"
