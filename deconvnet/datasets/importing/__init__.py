"""Importing annotated data sets of other formats into VOC's layout.

An import takes three steps. A module of `deconvnet.datasets.formats` reads the annotations into a `dataset.AnnotatedDataset`.
Then `train_val_split` assigns the images to train and val. Finally `voc_writer` loads the images and writes them with their
masks.

The other modules help the formats. `images` finds and reads images, `regions` and `rle` turn annotated shapes into pixels,
`painting` makes masks from them, and `mask_values` and `class_table` read masks.
"""
