"""Evaluation of predicted masks: metrics, the comparison of two models, and submissions to PASCAL VOC's test server."""
