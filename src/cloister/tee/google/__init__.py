"""Google Cloud: Confidential Space tokens; the vTPM of confidential VMs."""

SPACE_MEDIA_TYPE = "application/vnd.cloister.google-space+jwt"
VTPM_MEDIA_TYPE = "application/vnd.cloister.google-vtpm"
