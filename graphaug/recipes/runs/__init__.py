"""One run of a sweep, on images or on graphs: how it is checked, made, told from others, and what came of it.

May import: what `graphaug.recipes` may, and no figure.
"""
