"""Fully connected CRF (Krähenbühl, Koltun, NIPS 2011)."""

from deconvnet.crf.mean_field import dense_crf

__all__ = ["dense_crf"]
