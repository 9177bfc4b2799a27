"""MSD Task07 Pancreas, which the paper holds out: the Decathlon's converter with that said."""

from __future__ import annotations

import dataclasses

from dataset_conversion.facts import PaperRole
from dataset_conversion.msd import TASKS, facts_of, public_set

NUMBER = 7
FACTS = dataclasses.replace(facts_of(TASKS[NUMBER - 1]), paper=PaperRole.HELD_OUT)

MSD_PANCREAS = public_set(NUMBER, FACTS)
