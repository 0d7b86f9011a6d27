"""Pipelines: which stages there are, in what order, and from what settings and tables each is made."""
