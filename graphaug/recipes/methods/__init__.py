"""The method of each group of figures: its settings, its claims, and what is compared with what.

May import: `graphaug.recipes.plan`, `claims` and `choice`, and the settings of a modality; nothing is run here.
"""
