"""Methods of training on images: what is made of the embeddings of views, and what follows the network beside it.

A file a family; `graphaug.vision.methods.table` has them by name.

May import: `graphaug.contrastive`, the core, and `graphaug.vision.models`; no job and no command.
"""
