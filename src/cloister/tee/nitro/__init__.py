"""AWS Nitro Enclaves: attestation documents signed by the Nitro hypervisor."""

MEDIA_TYPE = "application/vnd.cloister.nitro-doc"
