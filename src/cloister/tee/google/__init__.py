"""Google Cloud: Confidential Space tokens; the vTPM of confidential VMs."""
