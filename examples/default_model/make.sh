#!/usr/bin/env bash
# From data sets to the weights that ship: make.sh DATA WORKSPACE
set -euo pipefail
data=$1 workspace=$2
here=$(cd "$(dirname "$0")" && pwd)
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=${THREADS:-1}

sets=(hippocampus openkbp sts_mr prostate_mr_sim prostate_us_sim ms_lesions spinal_cord spine
  spleen lung plant_cells embryo_nuclei unlabelled)
for set in "${sets[@]}"; do
  [ -d "$workspace/raw/$set" ] || iris convert info_json "$data/$set" -o "$workspace/raw/$set" -q
done
python "$here/phantoms.py" "$workspace/raw/phantoms"

common=(--preset small
  --set training.precision=bfloat16
  --set training.optimiser.name=adamw --set training.optimiser.lr=0.001
  --set training.checkpoint_every_s=300)

# 1. Learn to follow the reference, on what is easy to tell apart.
iris plan phantoms -w "$workspace" --name first "${common[@]}" -q \
  --set training.steps=300 --set training.ema=0.98 \
  --set training.optimiser.warmup=30 --set training.optimiser.final_lr_ratio=1.0 \
  --set training.mixing.real=0.8 --set training.mixing.pseudo=0 --set training.mixing.synthetic=0.2 \
  --set training.task.references_max=1 --set training.task.class_drop=0.05 \
  --set training.task.union_probability=0 --set training.task.query_holds_class=0.9 \
  --set training.geometry.scale_min=0.8 --set training.geometry.scale_max=1.3 \
  --set training.geometry.elastic_probability=0 --set training.geometry.affine_probability=0.3 \
  --set training.intensity.remap_probability=0 --set training.intensity.gamma_probability=0 \
  --set training.intensity.inverted_gamma_probability=0 \
  --set training.intensity.low_resolution_probability=0
# 2. Everything.
iris plan -w "$workspace" --name middle "${common[@]}" -q \
  --set sets.phantoms.weight=3.0 \
  --set training.steps=1916 --set training.ema=0.998 \
  --set training.optimiser.warmup=50 --set training.optimiser.final_lr_ratio=0.3 \
  --set training.mixing.real=0.75 --set training.mixing.pseudo=0.05 \
  --set training.mixing.synthetic=0.2 \
  --set training.task.references_max=2 --set training.task.one_reference_share=0.75 \
  --set training.task.class_drop=0.15 --set training.task.union_probability=0.1 \
  --set training.task.query_holds_class=0.8 \
  --set training.geometry.scale_min=0.6 --set training.geometry.scale_max=1.7 \
  --set training.geometry.affine_probability=0.5 --set training.intensity.remap_probability=0.05 \
  --set training.validate_every_s=1300
# 3. Everything, with intensities that agree more between reference and query.
iris plan -w "$workspace" --name last "${common[@]}" -q --set training.seed=2 \
  --set sets.phantoms.weight=9.0 \
  --set training.steps=2600 --set training.ema=0.995 \
  --set training.optimiser.warmup=30 --set training.optimiser.final_lr_ratio=0.05 \
  --set training.mixing.real=0.86 --set training.mixing.pseudo=0.04 \
  --set training.mixing.synthetic=0.1 \
  --set training.task.references_max=1 --set training.task.class_drop=0.05 \
  --set training.task.union_probability=0.05 --set training.task.query_holds_class=0.85 \
  --set training.geometry.scale_min=0.75 --set training.geometry.scale_max=1.4 \
  --set training.geometry.affine_probability=0.4 --set training.geometry.elastic_probability=0.15 \
  --set training.intensity.remap_probability=0.02 \
  --set training.intensity.brightness_probability=0.1 \
  --set training.intensity.contrast_probability=0.1 \
  --set training.intensity.gamma_probability=0.1 \
  --set training.intensity.inverted_gamma_probability=0.02 \
  --set training.validate_every_s=900

iris preprocess -w "$workspace" --plan "$workspace/plans/last.json" -q
previous=
for stage in first middle last; do
  start=()
  [ -z "$previous" ] || start=(--init-from "$workspace/runs/$previous/checkpoint_latest.pt")
  cases=1
  [ "$stage" != first ] || cases=0
  iris train "$stage" -w "$workspace" --plan "$workspace/plans/$stage.json" "${start[@]}" \
    --validate-cases "$cases" --threads "$OMP_NUM_THREADS" -j 1
  previous=$stage
done
python "$here/export.py" "$workspace/runs/last" "$workspace/iris-small-1"
