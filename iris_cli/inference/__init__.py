"""From a query and a task to a label map.

`windows` cuts a volume into overlapping patches, `sliding` runs the network over them and blends
the logits, `case` goes from a native volume to native labels, `job` does one case of a folder with
its receipt. `mass` takes their place for models of profile `mass-1`. Arrays are `(z, y, x)`;
logits are `(K, z, y, x)`, float32, on the working grid until they are turned into labels on the
native one.
"""
