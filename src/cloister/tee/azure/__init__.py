"""Azure confidential VMs: a vTPM around SEV-SNP or TDX; Microsoft Azure Attestation tokens."""

MEDIA_TYPE = "application/vnd.cloister.azure-vtpm"
MAA_MEDIA_TYPE = "application/vnd.cloister.maa+jwt"
