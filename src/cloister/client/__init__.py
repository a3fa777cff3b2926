"""The client: verify first, then speak. One sans-I/O core (session, appraisal), thin shells around it."""
