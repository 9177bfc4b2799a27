"""Training: episodes, augmentation, loss, optimiser, loop and checkpoints.

What lives here: everything between the preprocessed store and a checkpoint. What does not: planning
(it composes `TrainingSettings` and `SetForTraining`), validation (workflows hand in a callable),
pictures (report). Conventions: arrays are (z, y, x); positions are voxel indices of a stored
volume, an integer index being the centre of its voxel; a *view* is one augmented crop of a volume.
Every random number of an episode comes from one generator seeded by (seed, episode index).
"""
