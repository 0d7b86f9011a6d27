"""Importing annotated data sets of other formats into VOC's layout.

An import takes three steps. A module of `deconvnet.datasets.formats` reads the annotations into a `dataset.AnnotatedDataset`.
Then `train_val_split` assigns the images to train and val. Finally `deconvnet.datasets.writing` loads the images and writes them
with their masks.

The other modules help the formats. `images` finds and reads images. `shapes` describes annotations that are shapes, `regions`
turns them into pixels, and `painting` makes masks from them. `mask_values`, `class_table` and `table_text` read masks and the
tables of their classes. `orientation` decides whether images with EXIF orientation were annotated as stored or as displayed.
"""
