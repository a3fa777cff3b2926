"""AMD SEV-SNP: attestation reports signed by a chip's or a cloud's endorsement key."""

MEDIA_TYPE = "application/vnd.cloister.snp-report"
