"""Sentences: read, tokenized, put into batches, and masked.

May import: errors.
"""
