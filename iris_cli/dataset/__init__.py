"""Raw data: folders, names and JSON, never voxels.

What lives here: nnU-Net's raw layout (`raw`, `layout`, `dataset_json`), channels and classes
(`classes`), the folders users give as references and queries (`references`), making a raw data
set out of paired files (`pairs`, `building`) and generated cases (`phantoms`).

Conventions: a name that comes from JSON or the command line is a plain name and never leaves its
folder; files whose names start with a dot are nobody's; lists of cases are sorted by name.
"""
