"""Random views of images on the device: parameters per image, the operations, a whole batch or one image at a time.

May import: errors, torch_private. Needs torch alone.
"""
