"""One case of a folder: receipts, what is kept, what is done again."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iris_cli.errors import DataRefused, EnvironmentProblem
from iris_cli.execution.jobs import CaseJob, run_cases
from iris_cli.execution.receipts import read_receipt
from iris_cli.inference import job, predictor, products
from iris_cli.inference.case import predict_volume
from iris_cli.inference.job import PredictPayload, predict_case
from iris_cli.inference.memory import Limits, Means, ladder
from iris_cli.inference.outputs import Outputs
from iris_cli.inference.streaming import How
from iris_cli.model.model import ModelCard, load_model, save_model
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.task.task_file import ModelRecord, write_task
from iris_cli.volume.grid import GridMatch
from iris_cli.volume.reading import read_class_names, read_image, read_labels
from iris_cli.volume.writing import write_image, write_labels
from tests.inference.conftest import MakeTask, WriteQuery, noise


@pytest.fixture
def payload(
    tmp_path: Path, write_query: WriteQuery, task_file: Path, model_folder: Path
) -> PredictPayload:
    return PredictPayload(
        case="q",
        query=write_query("q.nii.gz"),
        output=tmp_path / "out" / "q.nii.gz",
        task=task_file,
        model=str(model_folder),
    )


def test_a_case_leaves_its_labels_and_a_receipt(payload: PredictPayload) -> None:
    result = predict_case(payload)
    assert result.status == "done"
    labels, query = read_labels(payload.output), read_image(payload.query)
    assert labels.grid.compare(query.grid) is GridMatch.EQUAL
    assert read_class_names(payload.output) == {5: "c0", 4: "c1", 3: "c2", 2: "c3"}
    receipt = read_receipt(payload.receipt)
    assert receipt is not None
    assert receipt.content["inputs"]["query"] == query.content_hash()
    assert receipt.content["output"]["sha256"] == labels.content_hash()
    counted = {name: int((labels.array == 5 - i).sum()) for i, name in enumerate(("c0", "c1"))}
    assert counted.items() <= receipt.content["output"]["voxels"].items()
    assert receipt.run["seconds"] > 0


def test_content_holds_no_path_time_or_thread(payload: PredictPayload, tmp_path: Path) -> None:
    receipt = predict_case(payload).receipt
    text = json.dumps(receipt["content"])
    assert str(tmp_path) not in text
    assert "/" not in text
    for word in ("seconds", "thread", "device", "memory"):
        assert word not in text


def test_a_case_with_a_matching_receipt_is_kept(payload: PredictPayload) -> None:
    first = predict_case(payload)
    before = payload.output.stat().st_mtime_ns
    second = predict_case(payload)
    assert second.status == "kept"
    assert second.receipt == first.receipt
    assert payload.output.stat().st_mtime_ns == before


def test_a_touched_query_is_kept_and_a_changed_one_is_not(
    payload: PredictPayload, write_query: WriteQuery
) -> None:
    predict_case(payload)
    os.utime(payload.query, (1, 1))
    assert predict_case(payload).status == "kept"
    write_query("q.nii.gz", seed=3)
    assert predict_case(payload).status == "done"


def test_an_output_that_was_changed_or_lost_is_made_again(payload: PredictPayload) -> None:
    content = predict_case(payload).receipt["content"]
    written = read_labels(payload.output)
    write_labels(payload.output, np.zeros_like(written.array), written.native)
    assert predict_case(payload).status == "done"
    payload.output.write_bytes(payload.output.read_bytes()[:-9])
    assert predict_case(payload).status == "done"
    payload.output.unlink()
    again = predict_case(payload)
    assert again.status == "done"
    assert again.receipt["content"] == content


def test_a_broken_receipt_proves_nothing(payload: PredictPayload) -> None:
    content = predict_case(payload).receipt["content"]
    for text in (
        "",
        "{",
        '{"case": "q", "content": {}}',
        '{"case": "q", "content": {"inputs": 1}}',
    ):
        payload.receipt.write_text(text)
        again = predict_case(payload)
        assert again.status == "done"
        assert again.receipt["content"] == content


def test_other_classes_task_or_model_are_other_inputs(
    payload: PredictPayload, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_case(payload)
    picked = dataclasses.replace(payload, classes=("c1",))
    assert predict_case(picked).status == "done"
    assert set(np.unique(read_labels(payload.output).array)) <= {0, 4}
    assert predict_case(dataclasses.replace(picked, device="cpu", window_batch=2)).status == "kept"
    write_task(payload.task, make_task(seed=8))
    assert predict_case(picked).status == "done"
    monkeypatch.setattr(job, "INFERENCE_VERSION", 0)
    assert predict_case(picked).status == "done"


def test_precision_and_skipping_are_inputs_and_memory_is_not(payload: PredictPayload) -> None:
    predict_case(payload)
    for changes, status in (
        ({"limits": Limits(ram=10**11)}, "kept"),
        ({"precision": "bf16"}, "done"),
        ({"precision": "bf16", "skip_empty": True}, "done"),
    ):
        assert predict_case(dataclasses.replace(payload, **changes)).status == status


def test_what_is_done_in_another_precision_is_kept_where_none_was_named(
    payload: PredictPayload,
) -> None:
    bf16 = dataclasses.replace(payload, precision="bf16")
    assert predict_case(bf16).status == "done"
    auto = dataclasses.replace(payload, precision="fp32", any_precision=True)
    kept = predict_case(auto)
    assert kept.status == "kept"
    assert kept.receipt["content"]["inputs"]["parameters"]["precision"] == "bf16"
    assert predict_case(dataclasses.replace(auto, skip_empty=True)).status == "done"
    assert predict_case(bf16).status == "done"


def test_the_receipt_says_what_memory_was_expected_and_which_steps_were_taken(
    payload: PredictPayload,
) -> None:
    run = predict_case(payload).receipt["run"]
    assert run["memory_steps"] == []
    assert run["predicted_memory_mb"] > 0
    assert run["peak_memory_mb"] > 0


def test_a_query_that_fits_by_no_means_is_refused_with_the_numbers(
    payload: PredictPayload,
) -> None:
    tight = dataclasses.replace(payload, limits=Limits(ram=1_000_000))
    with pytest.raises(EnvironmentProblem, match="does not fit") as caught:
        predict_case(tight)
    assert "0.00 GB" in str(caught.value.expected)
    assert not payload.output.exists()


def test_an_out_of_memory_of_the_device_goes_one_rung_down(
    payload: PredictPayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = predict_case(payload)
    tried: list[Means] = []

    def short_of_memory(*arguments: object, how: How, **options: object) -> object:
        tried.append(how.means)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return predict_volume(*arguments, how=how, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(predictor, "predict_volume", short_of_memory)
    payload.receipt.unlink()
    result = predict_case(dataclasses.replace(payload, window_batch=2))
    assert tried == [*ladder(Means(window_batch=2), cuda=False)]
    assert result.receipt["run"]["memory_steps"] == [
        "window batch 1",
        "labels in a file",
    ]
    assert result.receipt["content"] == plain.receipt["content"]
    assert [path.name for path in payload.receipt.parent.iterdir()] == ["q.json"]

    def never(*arguments: object, **options: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(predictor, "predict_volume", never)
    payload.receipt.unlink()
    with pytest.raises(EnvironmentProblem, match="not enough memory"):
        predict_case(payload)


def test_what_a_killed_process_left_is_removed(payload: PredictPayload) -> None:
    payload.output.parent.mkdir()
    leftover = payload.output.parent / ".q.nii.gz.999999999-abcd.partial.nii.gz"
    other = payload.output.parent / ".r.nii.gz.999999999-abcd.partial.nii.gz"
    note = payload.receipt.parent / ".q.new.999999999-abcd.partial.new"
    note.parent.mkdir()
    note.write_text("x")
    leftover.write_text("x")
    other.write_text("x")
    predict_case(payload)
    assert not leftover.exists()
    assert not note.exists()
    assert other.exists()


def test_a_refused_query_leaves_nothing(payload: PredictPayload) -> None:
    payload.query.write_bytes(payload.query.read_bytes()[:-100])
    with pytest.raises(DataRefused):
        predict_case(payload)
    assert not payload.output.exists()
    assert not payload.receipt.exists()


def test_contents_are_equal_for_any_workers_and_order(
    payload: PredictPayload, write_query: WriteQuery, tmp_path: Path
) -> None:
    cases = ["a", "b", "c"]
    queries = {
        name: write_query(f"{name}.nii.gz", (20, 20, 20), seed=i) for i, name in enumerate(cases)
    }

    outputs = Outputs(check_tokens=True)

    def contents(workers: int, order: list[str]) -> dict[str, tuple[dict[str, Any], bytes]]:
        folder = tmp_path / f"out{workers}{''.join(order)}"
        jobs = [
            CaseJob(
                name,
                dataclasses.replace(
                    payload,
                    case=name,
                    query=queries[name],
                    output=folder / f"{name}.nii.gz",
                    outputs=outputs,
                ),
            )
            for name in order
        ]
        summary = run_cases(jobs, predict_case, workers=workers)
        summary.raise_for_failures()
        receipts = {name: read_receipt(folder / ".iris" / f"{name}.json") for name in cases}
        bytes_ = {name: (folder / f"{name}.nii.gz").read_bytes() for name in cases}
        return {n: (r.content, bytes_[n]) for n, r in receipts.items() if r is not None}

    here = contents(0, cases)
    assert len(here) == 3
    assert any(content["likeness"] for content, _ in here.values())
    assert contents(0, cases[::-1]) == here
    assert contents(1, cases) == here


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives(
    payload: PredictPayload, write_query: WriteQuery, tmp_path: Path
) -> None:
    jobs, outputs = [], []
    for workers in (0, 2):
        for index in range(4):
            query = write_query(f"{index}.nii.gz", seed=index)
            output = tmp_path / f"out{workers}" / f"{index}.nii.gz"
            item = dataclasses.replace(payload, case=str(index), query=query, output=output)
            jobs.append(CaseJob(f"{workers}/{index}", item))
        run_cases(jobs, predict_case, workers=workers).raise_for_failures()
        outputs.append([job.payload.output.read_bytes() for job in jobs])
        jobs = []
    assert outputs[0] == outputs[1]


def test_a_case_that_fails_under_another_task_keeps_the_old_result_with_its_receipt(
    payload: PredictPayload, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_case(payload)
    before = payload.output.read_bytes(), payload.receipt.read_bytes()
    write_task(payload.task, make_task(seed=8))

    def broken(*arguments: object, **options: object) -> None:
        raise DataRefused("broken")

    monkeypatch.setattr(predictor, "predict_volume", broken)
    with pytest.raises(DataRefused, match="broken"):
        predict_case(payload)
    assert (payload.output.read_bytes(), payload.receipt.read_bytes()) == before


def test_files_that_iris_did_not_write_are_never_removed(
    payload: PredictPayload, write_query: WriteQuery
) -> None:
    """Not in the folders of a case, not beside what is there, whatever its receipt says."""
    out = payload.output.parent
    every = Outputs(probabilities="uint8", multilabel=True)
    asked = dataclasses.replace(payload, outputs=every)
    mine = [out / "q" / "mine.nii.gz", out / "probabilities" / "q" / "notes.txt"]
    mine += [out / "q.mha", out / "previews" / "q.png"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    predict_case(asked)
    masks = {path.name for path in (out / "q").iterdir()}
    assert masks == {"mine.nii.gz", *(f"c{i}.nii.gz" for i in range(4))}
    write_query("q.nii.gz", seed=3)
    assert predict_case(payload).status == "done"
    assert [path.name for path in (out / "q").iterdir()] == ["mine.nii.gz"]
    payload.receipt.write_text("{")
    write_query("q.nii.gz", seed=4)
    assert predict_case(payload).status == "done"
    assert {path.read_text() for path in mine} == {"mine"}


def test_a_query_among_the_files_of_a_receipt_is_spared(payload: PredictPayload) -> None:
    other = dataclasses.replace(payload, output=payload.output.with_name("q.mha"))
    predict_case(other)
    label_map = other.output.read_bytes()
    again = dataclasses.replace(payload, query=other.output)
    assert predict_case(again).status == "done"
    assert other.output.read_bytes() == label_map


def test_what_a_killed_attempt_noted_is_removed_and_nothing_else(
    payload: PredictPayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    asked = dataclasses.replace(payload, outputs=Outputs(multilabel=True))
    mine = payload.output.parent / "q" / "mine.nii.gz"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(job, "write_receipt", killed)
        with pytest.raises(Killed):
            predict_case(asked)
    assert len([*mine.parent.iterdir()]) == 5
    assert predict_case(payload).status == "done"
    assert [*mine.parent.iterdir()] == [mine]
    assert [path.name for path in payload.receipt.parent.iterdir()] == ["q.json"]
    # A note of elsewhere, or one that is none, names nothing.
    outside = payload.query.parent / "outside.txt"
    outside.write_text("mine")
    for text in ('["../queries/outside.txt"]', f'["{outside}"]', "{", "7"):
        payload.receipt.with_suffix(".new").write_text(text)
        payload.output.unlink()
        assert predict_case(payload).status == "done"
    assert outside.exists()


def test_other_voxels_behind_an_unchanged_header_are_another_query(
    payload: PredictPayload, tmp_path: Path
) -> None:
    import SimpleITK

    header = tmp_path / "queries" / "q.mhd"
    image = SimpleITK.GetImageFromArray(noise((20, 24, 20)))
    SimpleITK.WriteImage(image, str(header))
    asked = dataclasses.replace(payload, query=header)
    assert predict_case(asked).status == "done"
    assert predict_case(asked).status == "kept"
    header.with_suffix(".raw").write_bytes(noise((20, 24, 20), 5).tobytes())
    assert predict_case(asked).status == "done"


def test_size_and_time_alone_make_no_query_the_same(
    payload: PredictPayload, write_query: WriteQuery
) -> None:
    first = write_query("k.nii", seed=0)
    other = write_query("k.nii", seed=4, folder="others")
    for path in (first, other):
        os.utime(path, ns=(10**18, 10**18))
    asked = dataclasses.replace(payload, query=first)
    assert predict_case(asked).status == "done"
    assert predict_case(dataclasses.replace(payload, query=other)).status == "done"
    write_query("k.nii", seed=5, folder="others")
    os.utime(other, ns=(10**18, 10**18))
    assert predict_case(dataclasses.replace(payload, query=other)).status == "done"


def test_a_task_that_was_replaced_is_refused(payload: PredictPayload, make_task: MakeTask) -> None:
    known = dataclasses.replace(payload, fingerprint=make_task().fingerprint())
    assert predict_case(known).status == "done"
    write_task(payload.task, make_task(seed=8))
    with pytest.raises(DataRefused, match="replaced while the run"):
        predict_case(known)


def test_another_model_or_spacing_is_another_input(
    payload: PredictPayload, make_task: MakeTask, tmp_path: Path
) -> None:
    predict_case(payload)
    write_task(payload.task, make_task(spacing_mm=2.0))
    assert predict_case(payload).status == "done"
    assert predict_case(payload).status == "kept"
    torch.manual_seed(1)
    network = IrisNetwork(NetworkConfig.tiny()).eval()
    card = ModelCard.of(network, name="tiny", s0=1.5, patch=32)
    other = save_model(tmp_path / "other", network, card)
    record = ModelRecord(name="tiny", version="1", fingerprint=load_model(other).card.fingerprint)
    write_task(payload.task, make_task(spacing_mm=2.0, model=record))
    changed = dataclasses.replace(payload, model=str(other))
    assert predict_case(changed).status == "done"
    assert predict_case(changed).status == "kept"


def test_an_assumed_spacing_counts_only_where_the_query_has_none(payload: PredictPayload) -> None:
    first = predict_case(payload).receipt
    assert first["content"]["inputs"]["assumed_spacing_xyz"] is None
    assumed = dataclasses.replace(payload, assume_spacing=2.0)
    assert predict_case(assumed).status == "kept"
    content = bytearray(gzip.decompress(payload.query.read_bytes()))
    content[252:256] = bytes(4)  # the codes of qform and sform
    payload.query.write_bytes(gzip.compress(bytes(content)))
    assert predict_case(assumed).status == "done"
    assert predict_case(dataclasses.replace(payload, assume_spacing=(2, 2, 2))).status == "kept"
    other = predict_case(dataclasses.replace(payload, assume_spacing=1.5))
    assert other.status == "done"
    assert other.receipt["content"]["inputs"]["assumed_spacing_xyz"] == [1.5] * 3


def _cut_query(payload: PredictPayload, _: pytest.MonkeyPatch) -> Path:
    payload.query.write_bytes(payload.query.read_bytes()[:-20])
    return payload.query


def _no_numbers(payload: PredictPayload, _: pytest.MonkeyPatch) -> Path:
    volume = read_image(payload.query)
    nothing = np.full_like(volume.array, np.nan, dtype=np.float32)
    write_image(payload.query, nothing, volume.native)
    return payload.query


def _no_task(payload: PredictPayload, _: pytest.MonkeyPatch) -> Path:
    payload.task.write_bytes(b"nothing")
    return payload.task


def _no_network(payload: PredictPayload, monkeypatch: pytest.MonkeyPatch) -> Path:
    def break_off(*_: object) -> None:
        raise RuntimeError("a kernel that is not there")

    monkeypatch.setattr(IrisNetwork, "encode_image", break_off)
    return payload.query


def _full_disk(payload: PredictPayload, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(products, "write_labels", refuse)
    return payload.output


@pytest.mark.parametrize(
    ("spoil", "stage"),
    [
        (_no_task, "loading task and model"),
        (_cut_query, "reading the query"),
        (_no_numbers, "normalising and resampling the query"),
        (_no_network, "segmenting the query"),
        (_full_disk, "writing the label map"),
    ],
)
def test_what_fails_comes_with_case_file_and_stage(
    payload: PredictPayload,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[PredictPayload, pytest.MonkeyPatch], Path],
    stage: str,
) -> None:
    file = spoil(payload, monkeypatch)
    (outcome,) = run_cases([CaseJob("q", payload)], predict_case).outcomes
    error = outcome.error or {}
    assert (outcome.name, error["stage"], error["file"]) == ("q", stage, str(file))
