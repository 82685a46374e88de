"""Semantic textual similarity: the seven tasks, their correlations, the report.

May import: errors, `graphaug.text.encoders`, `graphaug.text.corpus`.
"""
