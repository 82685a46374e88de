"""How a forward is recorded: opened code runs on fake tensors, and the functions of torch that it calls become nodes.

`walk` goes through the modules, `recorder` writes what their code calls, `ledger` knows which node every value belongs
to, `leaves` runs what stays closed, `tables` is what code keeps outside of its modules. ``values/``, ``calls/`` and
``opened/`` are what opened code has, does, and meets; ``relied/`` is what its graph relies on. May import: errors, and
the rest of `graphaug.capture`.
"""
