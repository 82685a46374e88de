"""Contrastive training on images: data, views, encoders, the objective, its evaluation and commands.

May import: the core and `graphaug.contrastive`. Needs the extras ``[vision]`` and, for training, ``[train]``. Nothing
is imported here, so that the views need torch alone.
"""
