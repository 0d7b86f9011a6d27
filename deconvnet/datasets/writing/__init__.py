"""Writing annotated images in VOC's layout: a new folder (`voc_writer`, `new_folder`), or into an existing one (`addition`)."""
