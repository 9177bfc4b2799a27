"""Converters: public data sets into raw data sets, one file per form, listed in `registry`.

A converter is an importable `convert(source, target, *, mode)`. It never changes a voxel and never
re-encodes a file, except where nnU-Net's layout has no place for the original (a 4-D file of
several channels). It states what it left out or had to decide in `Conversion.notes`.
"""
