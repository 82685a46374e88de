"""Images: where they come from, how they are read, checked, cached, and handed out in batches.

May import: errors, `graphaug.contrastive`.
"""

from graphaug.vision.data.images import ImageData, ImageSet, load

__all__ = ["ImageData", "ImageSet", "load"]
