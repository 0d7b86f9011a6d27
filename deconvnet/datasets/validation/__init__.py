"""The check of a data set before training.

`check.check_dataset` runs the whole check. Its steps are to measure each image (`image_statistics`), to look for images that
occur twice (`duplicates`), to compose a report in Markdown (`report`), and to draw a contact sheet (`contact_sheet`).
"""
