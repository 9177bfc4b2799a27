"""From raw data sets to a plan: fingerprints, splits, presets, and a reason for every choice.

A plan is made from training cases only; test cases are named in it and never measured.
"""
