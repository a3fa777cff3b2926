"""Who rents the machine: one folder each."""
