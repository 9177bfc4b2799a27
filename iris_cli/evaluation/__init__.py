"""How good a label map is: counts and overlap per class, summaries over cases, intervals.

`metrics` works on two integer arrays of one grid, `statistics` on tables of numbers, `summary` on
folders. A Dice of a class that neither label map holds is not a number, as in nnU-Net.
"""
