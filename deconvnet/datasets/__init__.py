"""Annotated data sets: reading VOC's layout, importing other formats, checking, downloading and generating data.

Masks are arrays of ids: a class mask is uint8 (H, W) with a class id at each pixel, 0 for background and 255 for void (not known,
not counted). An object mask has the id of an object at each pixel instead: uint8 with void 255, or uint16 with void 65535 if
there are more than 254 objects.
"""
