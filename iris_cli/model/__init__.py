"""A model: a network with its weights, the profile it was trained with, and its card.

`card.py` is light (no torch); `model.py` loads and saves. A model on disk is a folder with
`weights.safetensors` and `model.json`, or one `.safetensors` file that carries its card as
metadata. Nothing is ever unpickled. Tensor names are those of the released weights.
"""
