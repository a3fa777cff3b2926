"""Azure confidential VMs: a vTPM around SEV-SNP or TDX; Microsoft Azure Attestation tokens."""
