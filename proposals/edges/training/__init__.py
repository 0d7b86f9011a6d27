"""Train the structured forest that detects edges."""
