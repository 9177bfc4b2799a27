"""The models that ship: one folder each, with weights, `model.json` and a card for people.

The file `default` names the one that is used where none is asked for. The licence of each model is
its own (see its card); the code of iris is Apache-2.0.
"""
