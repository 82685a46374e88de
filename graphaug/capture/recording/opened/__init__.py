"""What opened code meets when it runs: its inputs, the attributes of its modules, plain functions, calls of torch.

Each becomes a node, a fact that the graph relies on, or a refusal. May import: the recorder and all that it stands on.
"""
