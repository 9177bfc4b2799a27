"""Tasks: what a set of references defines, and the file it is kept in.

`spacing` decides the working spacing, `crops` where the encoder looks at a reference, `encoding`
turns references into task tokens, through the `views` that the model's profile takes of them
(`iris_views`, `mass_views`), `task_file` keeps them. `spacing` and `crops` are numpy only, so
that planning and training use the same rules; `encoding` computes with torch.
Arrays are `(z, y, x)` in canonical orientation; spacings and extents are millimetres.
"""
