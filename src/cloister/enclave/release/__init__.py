"""Key release: show evidence to a service, get the data key of the sealed weights."""
