"""Graphs: molecules and other small graphs, GIN, GraphCL and SimGRACE with Deep Augmentation, probes.

May import: the core and `graphaug.contrastive`. Needs the extra ``[graphs]``. Nothing is imported here.
"""
