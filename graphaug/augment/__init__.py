"""What happens to the rows of a batch at a site: which are chosen, and what is done to them.

May import: errors, torch_private. Knows tensors only, and nothing of models and graphs.
"""
