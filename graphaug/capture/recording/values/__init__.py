"""Values as opened code has them: what it reads off its tensors remembers where it comes from, also inside containers.

A recorded forward runs on fake tensors, which *are* tensors. What must not become a constant of the graph are the
things that it reads off them: a size, a dtype, a device. They are objects that remember where they come from.
Arithmetic on them is arithmetic in the graph; whatever needs the value itself (a branch, ``range``, ``hash``, a
look-up, a format) gets it, and the graph then checks in every call that it is the same.

No C code believes them to be something that they are not: torch sees its own ``SymInt`` and ``SymFloat``, or an object
with ``__torch_function__``, and hands the call to the recorder; everything else has to go through a method of theirs.

May import: `graphaug.capture.user_code`. Who answers for them is handed in: `graphaug.capture.recording.answers`.
"""
