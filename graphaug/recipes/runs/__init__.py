"""One run of a sweep, on images, graphs or text: how it is checked, made, told from others, and what came of it.

May import: what `graphaug.recipes` may, and no figure.
"""
