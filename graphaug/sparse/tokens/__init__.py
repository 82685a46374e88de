"""Fewer tokens behind a site: what follows them, told at two numbers of tokens, and whether every size fits.

May import: what `graphaug.sparse` may, and `graphaug.sparse.choose`, `graphaug.sparse.crossing`.
"""
