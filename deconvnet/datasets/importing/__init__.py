"""Importing annotated data sets of other formats into VOC's layout.

`deconvnet.datasets.formats` reads a data set (`dataset.AnnotatedDataset`), `train_val_split` splits it, and `voc_writer` loads
its images and writes them. The other modules are what formats use: `images` finds and reads images, `regions` and `rle` turn
shapes into pixels, `painting` makes masks of them, `mask_values` and `class_table` read masks.
"""
