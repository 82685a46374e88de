"""What a rewritten model is made of: its parts, how they are copied, its forward, and names that code cannot write.

May import: what `graphaug.surgery` may, and its plan. The model itself, `graphaug.surgery.module`, stands on this room.
"""
