"""Volumes: grids, orientation, resampling and the file formats of 3-D images.

Conventions, which hold everywhere in iris:
- arrays in memory are `(z, y, x)`, C-contiguous, in canonical orientation: the axis permutation
  and flips nearest to RAS+, so z grows to superior, y to anterior, x to the right;
- affines are nibabel's: voxel indices in file order `(i, j, k) = (x, y, z)` to RAS+ millimetres,
  with the centre of voxel 0 at the origin;
- names carry `_zyx` or `_xyz` wherever both could be meant; the order turns here and nowhere else.

`grid` is geometry alone, `orientation` turns stored arrays into canonical ones and back, `reading`
and `writing` are the only doors to files, `resampling` (the one module that imports torch) goes
from grid to grid. Nothing here knows of classes, tasks or models.
"""
