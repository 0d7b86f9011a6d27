"""The Markdown texts that are stored in MLflow: descriptions of runs and models, and the card of each version of a model."""
