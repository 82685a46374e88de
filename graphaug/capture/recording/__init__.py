"""How a forward is recorded: opened code runs on fake tensors, and the functions of torch that it calls become nodes.

`recorder` writes nodes, `walk` goes through the modules, `leaves` runs what stays closed, `sizes` are numbers that know
where they come from, `tables` is what code keeps outside of its modules. May import: errors, and the rest of the room.
"""
