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

# plan NAME SET... -- OPTION...: a plan of the three runs, with what they have in common.
plan() {
  local name=$1 chosen=()
  shift
  while [ "$1" != -- ]; do
    chosen+=("$1")
    shift
  done
  shift
  iris plan "${chosen[@]}" -w "$workspace" --name "$name" --preset small -q "$@" \
    --set training.precision=bfloat16 --set training.checkpoint_every_s=180 \
    --set training.intensity.brightness_probability=0.1 \
    --set training.intensity.contrast_probability=0.1 \
    --set training.intensity.gamma_probability=0.1 \
    --set training.intensity.inverted_gamma_probability=0.02 \
    --set training.intensity.remap_probability=0.02
}

# 1. Learn to follow the reference: three sets, mild deformation, one reference.
plan first openkbp hippocampus phantoms -- \
  --set sets.openkbp.weight=6 --set sets.hippocampus.weight=1.5 --set sets.phantoms.weight=3 \
  --set training.seed=3 --set training.steps=800 --set training.ema=0.99 \
  --set training.optimiser.lr=1e-3 --set training.optimiser.warmup=30 \
  --set training.optimiser.final_lr_ratio=0.1 \
  --set training.mixing.real=1 --set training.mixing.pseudo=0 --set training.mixing.synthetic=0 \
  --set training.task.references_max=1 --set training.task.class_drop=0.05 \
  --set training.task.union_probability=0 --set training.task.query_holds_class=0.85 \
  --set training.geometry.scale_min=0.85 --set training.geometry.scale_max=1.25 \
  --set training.geometry.affine_probability=0.4 --set training.geometry.elastic_probability=0.1

everything=(
  --validate-on sts_ct
  --set 'sets.openkbp.mirror_pairs=[["LeftParotid","RightParotid"]]'
  --set sets.hippocampus.symmetric=true
  --set training.task.class_drop=0.1 --set training.task.union_probability=0.05
  --set training.task.query_holds_class=0.75
  --set training.geometry.scale_min=0.75 --set training.geometry.scale_max=1.4
  --set training.geometry.affine_probability=0.5 --set training.geometry.elastic_probability=0.2
  --set training.validate_every_s=1700)

# 2. Everything, at a rate that does not undo what was learned.
plan middle "${sets[@]}" phantoms -- "${everything[@]}" \
  --set sets.openkbp.weight=8.02 --set sets.hippocampus.weight=2.32 \
  --set sets.phantoms.weight=1.84 --set sets.sts_mr.weight=2.68 \
  --set sets.prostate_mr_sim.weight=1.18 --set sets.prostate_us_sim.weight=1.18 \
  --set sets.ms_lesions.weight=3 --set sets.spinal_cord.weight=2.5 --set sets.spine.weight=2.83 \
  --set sets.lung.weight=3 --set sets.spleen.weight=3 --set sets.plant_cells.weight=1.73 \
  --set sets.embryo_nuclei.weight=2.12 --set sets.unlabelled.weight=2.41 \
  --set training.seed=12 --set training.steps=1900 --set training.ema=0.998 \
  --set training.optimiser.lr=4e-4 --set training.optimiser.warmup=100 \
  --set training.optimiser.final_lr_ratio=0.57 \
  --set training.mixing.real=0.82 --set training.mixing.pseudo=0.08 \
  --set training.mixing.synthetic=0.1 \
  --set training.task.references_max=2 --set training.task.one_reference_share=0.7 \
  --set training.task.body_share=0

# 3. More pseudo tasks, bodies that ignore the image among them, so that the prompt counts; the
# rate falls to almost nothing.
plan last "${sets[@]}" phantoms -- "${everything[@]}" \
  --set sets.openkbp.weight=9.09 --set sets.hippocampus.weight=3.1 \
  --set sets.phantoms.weight=2.04 --set sets.sts_mr.weight=3.13 \
  --set sets.prostate_mr_sim.weight=0.71 --set sets.prostate_us_sim.weight=0.71 \
  --set sets.ms_lesions.weight=2.5 --set sets.spinal_cord.weight=2 --set sets.spine.weight=2.12 \
  --set sets.lung.weight=3 --set sets.spleen.weight=3 --set sets.plant_cells.weight=1.15 \
  --set sets.embryo_nuclei.weight=1.41 --set sets.unlabelled.weight=1.87 \
  --set training.seed=13 --set training.steps=4200 --set training.ema=0.997 \
  --set training.optimiser.lr=2.4e-4 --set training.optimiser.warmup=50 \
  --set training.optimiser.final_lr_ratio=0.05 \
  --set training.mixing.real=0.74 --set training.mixing.pseudo=0.18 \
  --set training.mixing.synthetic=0.08 --set training.task.body_share=0.35

iris preprocess -w "$workspace" --plan "$workspace/plans/last.json" -q
previous=
for stage in first middle last; do
  start=()
  [ -z "$previous" ] || start=(--init-from "$workspace/runs/$previous/checkpoint_latest.pt")
  cases=1
  [ "$stage" != first ] || cases=0
  iris train "$stage" -w "$workspace" --plan "$workspace/plans/$stage.json" "${start[@]}" \
    --validate-cases "$cases" --device "$device" --threads "$OMP_NUM_THREADS" -j 1
  previous=$stage
done
python "$here/export.py" "$workspace/runs/last" "$workspace/iris-small-2"
