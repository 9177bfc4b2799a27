#!/usr/bin/env bash
# The six commands on two real sets: six_commands.sh DATA WORKSPACE
# DATA holds sets of images/, labels/ and info.json; the run is short and starts from the model
# that ships, so it shows that everything fits together, not what training can reach.
set -euo pipefail
data=$1 workspace=$2
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=${THREADS:-2}

for set in hippocampus openkbp; do
  [ -d "$workspace/raw/$set" ] || iris convert info_json "$data/$set" -o "$workspace/raw/$set"
done
iris plan hippocampus openkbp -w "$workspace" --set training.steps=60 \
  --set training.optimiser.lr=0.0003 --set training.precision=bfloat16
iris preprocess -w "$workspace" -j 2
model=$(python -c 'import iris_cli.weights as w, pathlib; print(pathlib.Path(w.__file__).parent / "iris-small-3")')
iris train short -w "$workspace" --init-from "$model" --validate-cases 1

# References are training cases; queries are the validation cases, which lie in imagesTr too.
references=(hippocampus:hippocampus_001,hippocampus_006,hippocampus_011
  openkbp:okbp_031,okbp_096,okbp_115)
for entry in "${references[@]}"; do
  set=${entry%%:*} cases=${entry#*:}
  out="$workspace/segmented/$set"
  list="$workspace/$set.txt"
  python - "$workspace/raw/$set" "$list" <<'PYTHON'
import sys
from pathlib import Path

from iris_cli.dataset.raw import read_raw_dataset

raw = read_raw_dataset(Path(sys.argv[1]).resolve(), strict=False)
chosen = [str(case.images[0]) for case in raw.cases if case.role == "validate"]
Path(sys.argv[2]).write_text("\n".join(chosen) + "\n")
PYTHON
  iris encode-task "$workspace/raw/$set" --cases "$cases" -o "$workspace/$set.task.pt" \
    -m "$workspace/runs/short/model"
  iris predict -t "$workspace/$set.task.pt" -m "$workspace/runs/short/model" -i "$list" -o "$out" -j 2
  validated=$(sed 's#.*/##; s#_0000\.nii\.gz$##' "$list" | paste -sd,)
  iris evaluate "$out" "$workspace/raw/$set/labelsTr" --cases "$validated"
done
