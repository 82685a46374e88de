"""What a captured graph relies on besides its inputs, to be checked in every call.

`facts` are numbers, switches and hooks of modules, as opened code read them; `children` what their registries held;
`reached` is one thing beside them that code reaches by a name, `reach` finds all of these, `called` the functions whose
code it is, `holdings` what lies inside of them, and `reads` tells which of them were read; `classes` says whose objects
may change, and `code_names` reads the names in code. `members` is what is read off classes, `modules` what is
read off modules. May import: errors, `graphaug.capture.recording.hooks` and `patches`, `graphaug.capture.user_code`.
"""
