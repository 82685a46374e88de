"""How good a trained encoder is: nearest neighbours, linear probes, fine-tuning, while training and afterwards.

May import: the core, `graphaug.contrastive`, and the rest of `graphaug.vision` but its jobs and commands.
"""
