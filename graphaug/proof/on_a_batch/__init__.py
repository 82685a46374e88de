"""What `graphaug.verify` proves on a batch: closed forms, a training step against forward hooks, nothing below.

May import: the rooms below `graphaug.proof`.
"""
