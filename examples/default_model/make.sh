#!/usr/bin/env bash
# From data sets to the weights that ship: make.sh DATA WORKSPACE
# Unattended and seeded; stop it at any time, the same line goes on.
set -euo pipefail
data=$1 workspace=$2
here=$(cd "$(dirname "$0")" && pwd)
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=${THREADS:-1}
device=${DEVICE:-cpu}

sets=(hippocampus openkbp sts_mr prostate_mr_sim prostate_us_sim ms_lesions spinal_cord spine
  spleen lung plant_cells embryo_nuclei unlabelled)
for set in "${sets[@]}" sts_ct; do
  [ -d "$workspace/raw/$set" ] || iris convert info_json "$data/$set" -o "$workspace/raw/$set" -q
done
python "$here/phantoms.py" "$workspace/raw/phantoms"

# setting KEY=VALUE...: `--set training.KEY=VALUE` each, into the array `options`.
setting() { for pair in "$@"; do options+=(--set "training.$pair"); done; }
# weight SET=FACTOR...: how often a set is drawn.
weight() { for pair in "$@"; do options+=(--set "sets.${pair%%=*}.weight=${pair#*=}"); done; }
# mix REAL PSEUDO SYNTHETIC: shares of the kinds of episode.
mix() { setting mixing.real="$1" mixing.pseudo="$2" mixing.synthetic="$3"; }
# write_plan NAME SET...: a plan with the options so far.
write_plan() {
  iris plan "${@:2}" -w "$workspace" --name "$1" --preset small -q "${options[@]}"
}
alike() {
  options=()
  setting precision=bfloat16 checkpoint_every_s=180 optimiser.name=adamw task.classes_max=8 \
    task.decoy_share=0 intensity.brightness_probability=0.1 intensity.contrast_probability=0.1 \
    intensity.gamma_probability=0.1 intensity.inverted_gamma_probability=0.02 \
    intensity.remap_probability=0.02
}
everything() {
  alike
  options+=(--validate-on sts_ct --set sets.hippocampus.symmetric=true
    --set 'sets.openkbp.mirror_pairs=[["LeftParotid","RightParotid"]]')
  setting task.class_drop=0.1 task.union_probability=0.05 task.query_holds_class=0.75 \
    geometry.scale_min=0.75 geometry.scale_max=1.4 geometry.affine_probability=0.5 \
    geometry.elastic_probability=0.2 validate_every_s=1700
}

# 1. Learn to follow the reference: three sets, mild deformation, one reference.
alike
weight openkbp=6 hippocampus=1.5 phantoms=3
mix 1 0 0
setting seed=3 steps=800 ema=0.99 \
  optimiser.lr=1e-3 optimiser.warmup=30 optimiser.final_lr_ratio=0.1 \
  task.references_max=1 task.class_drop=0.05 task.union_probability=0 task.query_holds_class=0.85 \
  geometry.scale_min=0.85 geometry.scale_max=1.25 geometry.affine_probability=0.4 \
  geometry.elastic_probability=0.1
write_plan first openkbp hippocampus phantoms

# 2. Everything, at a rate that does not undo what was learned.
everything
weight openkbp=8.02 hippocampus=2.32 phantoms=1.84 sts_mr=2.68 prostate_mr_sim=1.18 \
  prostate_us_sim=1.18 ms_lesions=3 spinal_cord=2.5 spine=2.83 lung=3 spleen=3 plant_cells=1.73 \
  embryo_nuclei=2.12 unlabelled=2.41
mix 0.82 0.08 0.1
setting seed=12 steps=1929 ema=0.998 \
  optimiser.lr=4e-4 optimiser.warmup=100 optimiser.final_lr_ratio=0.576 \
  task.references_max=2 task.one_reference_share=0.7 task.body_share=0
write_plan second "${sets[@]}" phantoms

# 3. More pseudo tasks, bodies that ignore the image among them, so that the prompt counts.
everything
weight openkbp=9.09 hippocampus=3.1 phantoms=2.04 sts_mr=3.13 prostate_mr_sim=0.71 \
  prostate_us_sim=0.71 ms_lesions=2.5 spinal_cord=2 spine=2.12 lung=3 spleen=3 plant_cells=1.15 \
  embryo_nuclei=1.41 unlabelled=1.87
mix 0.74 0.18 0.08
setting seed=13 steps=2221 ema=0.997 \
  optimiser.lr=2.4e-4 optimiser.warmup=50 optimiser.final_lr_ratio=0.208 task.body_share=0.35
write_plan third "${sets[@]}" phantoms

# 4. Back to a higher rate, more of the two sets that are judged, more references.
everything
weight openkbp=9.09 hippocampus=4.39 phantoms=1.84 sts_mr=2.24 prostate_mr_sim=0.59 \
  prostate_us_sim=0.59 ms_lesions=1.5 spinal_cord=1.5 spine=1.41 lung=2 spleen=2 plant_cells=0.87 \
  embryo_nuclei=1.06 unlabelled=1.07
mix 0.82 0.14 0.04
setting seed=14 steps=1700 ema=0.995 \
  optimiser.lr=2.4e-4 optimiser.warmup=40 optimiser.final_lr_ratio=0.03 \
  task.one_reference_share=0.5 task.query_holds_class=0.8 task.body_share=0.35
write_plan fourth "${sets[@]}" phantoms

# 5. Decoys: a mask beside the organ must not be answered with the organ.
everything
weight openkbp=9.09 hippocampus=5.5 phantoms=1.84 sts_mr=2.24 prostate_mr_sim=0.59 \
  prostate_us_sim=0.59 ms_lesions=1.5 spinal_cord=1.5 spine=1.41 lung=2 spleen=2 plant_cells=0.87 \
  embryo_nuclei=1.06 unlabelled=1.07
mix 0.86 0.1 0.04
setting seed=15 steps=1500 ema=0.995 \
  optimiser.lr=2.4e-4 optimiser.warmup=40 optimiser.final_lr_ratio=0.03 \
  task.one_reference_share=0.5 task.query_holds_class=0.8 task.body_share=0.5 task.decoy_share=0.3
write_plan fifth "${sets[@]}" phantoms

iris preprocess -w "$workspace" --plan "$workspace/plans/fifth.json" -q
previous=
for stage in first second third fourth fifth; do
  start=()
  [ -z "$previous" ] || start=(--init-from "$workspace/runs/$previous/checkpoint_latest.pt")
  # The last one is not validated: its end ships, not the step at which one set looked best.
  case $stage in first | fifth) cases=0 ;; *) cases=1 ;; esac
  iris train "$stage" -w "$workspace" --plan "$workspace/plans/$stage.json" "${start[@]}" \
    --validate-cases "$cases" --device "$device" --threads "$OMP_NUM_THREADS" -j 1
  previous=$stage
done
python "$here/export.py" "$workspace/runs/fifth" "$workspace/iris-small-3"
