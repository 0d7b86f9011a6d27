"""Define the pipelines of this project: their stages in order, and the settings and tables that each stage depends on."""
