"""Submissions to the test server of PASCAL VOC: the archive, and the prediction of its masks."""
