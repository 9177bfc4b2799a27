"""A model: a network with its weights, the profile it was trained with, and its card.

`card.py` and `registry.py` (names, where models lie) are light (no torch); `model.py` loads and
saves. A model on disk is a folder with `weights.safetensors` and `model.json`, or one
`.safetensors` file that carries its card as metadata. Tensor names are those of the released
weights, which `released.py` reads and writes: the only place where a foreign pickle is read, after
its opcodes were checked, by `torch.load(weights_only=True)`.
"""
