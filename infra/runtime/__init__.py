"""How work runs: stages that are skipped when complete, executors for their jobs, and what is needed to use Ray."""
