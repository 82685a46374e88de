"""What the model is: its graph, traced open only as far as is needed, and what that relies on.

May import: errors. Everything that traces, reads or writes a graph or the state of a model stands on this room.
"""
