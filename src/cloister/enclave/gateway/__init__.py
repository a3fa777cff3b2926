"""The replica's HTTP face: outer routes carry sealed bytes, inner routes are the API; one file each."""
