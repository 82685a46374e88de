"""Sentence embeddings: encoders, text files, and the seven STS tasks.

Needs the extra ``[text]``. Nothing is imported here, so that reading text needs the standard library alone.
"""
