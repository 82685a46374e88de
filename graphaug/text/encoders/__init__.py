"""Sentence encoders: built from a size, or loaded from a directory, with the pooling that makes one vector.

May import: errors, `graphaug.contrastive`.
"""
