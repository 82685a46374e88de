"""Sentence embeddings: encoders, text files, SimCSE with Deep Augmentation, and the seven STS tasks.

May import: the core and `graphaug.contrastive`. Needs the extra ``[text]``. Nothing is imported here, so that reading
text needs the standard library alone.
"""
