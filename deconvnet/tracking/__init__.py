"""Experiment tracking and the model registry: MLflow, or nothing (`tracking.enabled false`)."""
