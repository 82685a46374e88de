"""The analysis of finished runs: what is read, measured, drawn and written into one page.

May import: everything below `graphaug.analysis`, and it.
"""
