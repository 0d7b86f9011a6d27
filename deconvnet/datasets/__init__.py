"""Annotated data sets: reading VOC's layout, importing other formats, checking, downloading and generating data.

Masks are arrays of ids, one for each pixel. A class mask is a uint8 array (H, W) of class ids, with 0 for background and 255 for
void. Void pixels have no known class and are not counted in results. An object mask has the id of an object at each pixel
instead. It is uint8 with void 255, or uint16 with void 65535 if there are more than 254 objects.
"""
