"""The check of a data set before training.

`check.check_dataset` measures each image (`image_statistics`), looks for images that occur twice (`duplicates`), and makes a
report in Markdown (`report`) and a contact sheet (`contact_sheet`).
"""
