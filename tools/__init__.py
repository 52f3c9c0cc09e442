"""Scripts behind the nox sessions; each runs as `python -m tools.NAME` from the root of the repository."""
