"""A fully connected conditional random field (CRF), which refines segmentations (Krähenbühl and Koltun, NIPS 2011)."""

from deconvnet.crf.mean_field import dense_crf

__all__ = ["dense_crf"]
