"""A proof holds for the modules that it was made of: whether they are still the same in a later step.

May import: what `graphaug.sparse` may.
"""
