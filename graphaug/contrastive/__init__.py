"""Contrastive training for vision: losses, views, data, a small loop and its probes.

Needs the extras ``[vision]`` and, for the loop, ``[train]``. Nothing is imported here, so that the losses and the
views need torch alone.
"""
