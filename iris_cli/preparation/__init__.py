"""From raw volumes to what the network sees, alike for training, references and queries.

- `profiles`: how voxel values are normalised (a recipe with a name that a model is bound to):
  `iris-1`; `mass` is the other profile, `mass-1`, from a native query to network input;
- `prepare`: one volume on its native grid to one image on the working grid;
- `integrity`: every finding about a raw data set in one report, before anything else is done;
- `codes`: what can be found, in one word each, and what follows from it;
- `store`: the preprocessed folder `preprocessed/<set>/<key>/` and how crops are read from it;
- `preprocess`: one raw case into the store (a pure function from case to receipt).

Arrays are (z, y, x) in canonical orientation; spacings are millimetres. Nothing here draws
random numbers that are not seeded by the case, and nothing knows of networks.
"""
