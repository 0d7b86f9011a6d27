"""The alias `champion`: which versions of a registered model may get it, moving it, and the record of its moves."""
