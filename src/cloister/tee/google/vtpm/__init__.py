"""The attestation of a Compute Engine vTPM, with evidence of SEV-SNP or TDX inside where there is some."""
