"""A run on disk: its directory, its checkpoints, its settings compared with those of a resume.

May import: errors, and the settings and processes of `graphaug.contrastive`.
"""
