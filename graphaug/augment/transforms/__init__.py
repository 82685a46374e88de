"""Which changes of rows there are: each from its paper, with its draws apart from what is done with them.

May import: errors, torch_private, and of `graphaug.augment` what lies below a site: the protocol, choices, rows, draws.
"""
