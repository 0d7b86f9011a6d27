"""Evaluation of predicted masks: metrics, the comparison of two models, and submissions to PASCAL VOC's test server."""

EVALUATION_VERSION = 7
"""Version of the stage `evaluate`, increased when a change makes the same inputs give other results.

The stage `champion` evaluates, too, but has a version of its own. What is kept of their batches has this version.
"""
