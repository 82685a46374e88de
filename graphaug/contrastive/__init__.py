"""Contrastive training for vision: losses, views, data, the engine and the probes.

Needs the extras ``[vision]`` and, for the engine, ``[train]``. Nothing is imported here, so that the losses and the
views need torch alone.
"""
