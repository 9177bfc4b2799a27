"""Faster or leaner ways to compute what the modules beside this package define.

Every kernel computes the same numbers as a plain form up to rounding, and a test of its own holds
the two against each other. They are for inference: where a gradient is wanted the plain form runs.
"""
