"""The command line: one file per verb. Standard output is data, standard error is prose."""
