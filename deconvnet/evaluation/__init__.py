"""Evaluation of predicted masks: metrics, the comparison of two models, and submissions to PASCAL VOC's test server."""

EVALUATION_VERSION = 7  # increase it when a change makes the same inputs give other results
