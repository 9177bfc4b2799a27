from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_cli.errors import DataRefused, Diverged, EnvironmentProblem, Stopped
from iris_cli.execution.signals import StopRequest
from iris_cli.network.config import NetworkConfig
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training import step as step_module
from iris_cli.training.catalogue import read_catalogue
from iris_cli.training.checkpoint import BEST, LATEST, PREVIOUS, read_checkpoint, write_checkpoint
from iris_cli.training.claim import CLAIMS
from iris_cli.training.distributed import ALONE
from iris_cli.training.episodes import EpisodeSampler
from iris_cli.training.log import Tally
from iris_cli.training.loop import sizes_of_parts
from iris_cli.training.loss import Loss
from iris_cli.training.observers import Observer, StepReport
from iris_cli.training.run import TrainingOutcome, train
from iris_cli.training.settings import OptimiserSettings, SetForTraining
from iris_cli.training.state import Run
from iris_cli.training.step import EpisodeNetwork, Stepper
from tests.training.ranks import blinded
from tests.training.stores import NO_INTENSITY, balls, only, still, training, write_view

NETWORK = NetworkConfig(channels=(4, 4, 4, 8, 8), blocks=(1, 1, 1, 1), queries=2, stages=2)
PATCH = 32


class StopAfter:
    """Asks to stop at the n-th look; the loop looks once before every part of a step."""

    def __init__(self, looks: int) -> None:
        self.left = looks
        self.reason: str | None = None

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.reason = "a test"
        return self.reason is not None


def go(folder: Path, sets: list[SetForTraining], **options: Any) -> TrainingOutcome:
    settings = options.pop("settings", training())
    return train(folder, NETWORK, settings, sets, PATCH, **options)


def content(folder: Path, name: str = LATEST) -> str:
    """Hash of everything in a checkpoint that training decides."""
    state = read_checkpoint(folder / name)
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add({key: value for key, value in state.items() if not key.endswith("seconds")})
    return digest.hexdigest()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[SetForTraining]:
    return [balls(tmp_path_factory.mktemp("store"))]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, sets: list[SetForTraining]) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    go(folder, sets)
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_checkpoint_and_metrics(uninterrupted: Path) -> None:
    state = read_checkpoint(uninterrupted / LATEST)
    assert state["step"] == 6
    assert [line["step"] for line in lines(uninterrupted)] == [2, 4, 6]
    expected = {"loss", "dice", "dice_of", "lr", "grad_norm", "step_s", "wait_share", "eta_s"}
    assert expected <= set(lines(uninterrupted)[-1])
    assert any((uninterrupted / "tensorboard").iterdir())


def test_weights_and_averages_move(uninterrupted: Path) -> None:
    state = read_checkpoint(uninterrupted / LATEST)
    torch.manual_seed(training().seed)
    start = IrisNetwork(NETWORK).state_dict()
    moved = [name for name in start if not torch.equal(start[name], state["model"][name])]
    assert len(moved) == len(start)
    assert any(not torch.equal(state["ema"][n], state["model"][n]) for n in start)


def test_stopping_and_resuming_changes_no_bit(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    with pytest.raises(Stopped) as stopped:
        go(tmp_path, sets, stop=StopAfter(3))
    assert stopped.value.exit_code == 75
    assert read_checkpoint(tmp_path / LATEST)["step"] == 3
    go(tmp_path, sets)
    assert content(tmp_path) == content(uninterrupted)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_stopping_after_every_step_changes_no_bit(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    """R13 in short: everything in the checkpoint, memory bank and averages included."""
    assert sum(read_checkpoint(uninterrupted / LATEST)["bank"]["counts"]) > 0
    for _ in range(5):
        with pytest.raises(Stopped):
            go(tmp_path, sets, stop=StopAfter(1))
    outcome = go(tmp_path, sets)
    assert outcome.steps == 6
    assert content(tmp_path) == content(uninterrupted)


@pytest.mark.slow
def test_twenty_stops_with_workers_change_no_bit(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    """R13: 20 steps with 0, 1 or 2 workers and a stop after every one of them, bit for bit."""
    settings = training(steps=20)
    go(tmp_path / "whole", sets, settings=settings)
    for i in range(19):
        with pytest.raises(Stopped):
            go(tmp_path / "parts", sets, settings=settings, stop=StopAfter(1), workers=i % 3)
    go(tmp_path / "parts", sets, settings=settings)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_stopping_after_every_step_changes_no_bit_on_a_gpu(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    """R13 on CUDA, in bfloat16: cuDNN takes kernels that add up in a fixed order."""
    settings = training(precision="auto")
    go(tmp_path / "whole", sets, settings=settings, device="cuda")
    for _ in range(5):
        with pytest.raises(Stopped):
            go(tmp_path / "parts", sets, settings=settings, device="cuda", stop=StopAfter(1))
    go(tmp_path / "parts", sets, settings=settings, device="cuda")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_stop_in_the_middle_of_a_step_drops_that_step(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    settings = training(batch=2, accumulation=2, steps=3)
    go(tmp_path / "whole", sets, settings=settings)
    with pytest.raises(Stopped):
        go(tmp_path / "parts", sets, settings=settings, stop=StopAfter(3))
    assert read_checkpoint(tmp_path / "parts" / LATEST)["step"] == 1
    go(tmp_path / "parts", sets, settings=settings)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_time_limit_that_is_over_stops_before_the_first_step(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    with StopRequest(stop_after_s=0.0) as stop, pytest.raises(Stopped, match="stop-after"):
        go(tmp_path, sets, stop=stop)
    assert read_checkpoint(tmp_path / LATEST)["step"] == 0


@pytest.mark.parametrize("cause", ["SIGTERM", "SIGUSR1", "SIGINT", "--stop-after"])
def test_a_signal_or_time_limit_in_mid_run_stops_with_everything_saved(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path, cause: str
) -> None:
    """R14: exit 75, and the same final content as without a stop."""

    class Interrupt(Observer):
        def step(self, report: StepReport) -> None:
            if report.step == 2 and cause == "--stop-after":
                stop._deadline = time.monotonic()
            elif report.step == 2:
                os.kill(os.getpid(), signal.Signals[cause])

    limit = 3600.0 if cause == "--stop-after" else None
    with StopRequest(limit) as stop, pytest.raises(Stopped, match=cause) as stopped:
        go(tmp_path, sets, observers=[Interrupt()], stop=stop)
    assert stopped.value.exit_code == 75
    assert read_checkpoint(tmp_path / LATEST)["step"] == 2
    go(tmp_path, sets)
    assert content(tmp_path) == content(uninterrupted)


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path,
    sets: list[SetForTraining],
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = training(checkpoint_every_s=1e-9)
    take = step_module.Stepper.take

    def killed(self, *arguments):
        if self._run.progress.step == 5:
            raise SystemExit
        take(self, *arguments)

    monkeypatch.setattr(step_module.Stepper, "take", killed)
    with pytest.raises(SystemExit):
        go(tmp_path, sets, settings=settings)
    monkeypatch.undo()
    # The newest generation is damaged, half a line stands in the log.
    data = bytearray((tmp_path / LATEST).read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / LATEST).write_bytes(bytes(data))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')
    assert read_checkpoint(tmp_path / PREVIOUS)["step"] == 4
    go(tmp_path, sets, settings=settings)
    assert content(tmp_path) == content(uninterrupted)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_another_plan_or_other_data_are_refused(tmp_path: Path, sets: list[SetForTraining]) -> None:
    with pytest.raises(Stopped):
        go(tmp_path / "run", sets, stop=StopAfter(1))
    with pytest.raises(DataRefused, match="another plan"):
        go(tmp_path / "run", sets, settings=training(seed=1))
    other = balls(tmp_path / "other")
    write_view(other.store, "case_0", seed=99)
    with pytest.raises(DataRefused, match="another data"):
        go(tmp_path / "run", [other])
    # What cannot change the result may change.
    go(tmp_path / "run", sets, settings=training(log_every=1))


def breaks(at: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of some steps not a number."""
    plain, calls = step_module.episode_loss, iter(range(1000))

    def loss(*args: torch.Tensor) -> Loss:
        found = plain(*args)
        return replace(found, sum=found.sum * float("nan")) if next(calls) in at else found

    monkeypatch.setattr(step_module, "episode_loss", loss)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, sets: list[SetForTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R16, first half."""
    breaks({2}, monkeypatch)
    assert go(tmp_path, sets).skipped == 1
    state = read_checkpoint(tmp_path / LATEST)
    assert state["step"] == 6
    assert state["skipped_in_a_row"] == 0
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_a_gradient_that_is_not_finite_is_skipped_too(
    tmp_path: Path, sets: list[SetForTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.nn.utils.clip_grad_norm_
    calls = iter(range(1000))

    def norm(parameters, limit):
        found = plain(parameters, limit)
        return found * float("inf") if next(calls) == 1 else found

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    assert go(tmp_path, sets).skipped == 1


def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint(
    tmp_path: Path, sets: list[SetForTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R16, second half: exit 6."""
    settings = training(skipped_in_a_row_max=3, checkpoint_every_s=1e-9)
    breaks(set(range(2, 100)), monkeypatch)
    with pytest.raises(Diverged) as error:
        go(tmp_path, sets, settings=settings)
    assert error.value.exit_code == 6
    state = read_checkpoint(tmp_path / LATEST)
    assert (state["step"], state["skipped"]) == (4, 2)
    monkeypatch.undo()
    # Skipped steps touch no weight: these are the weights of step 2.
    with pytest.raises(Stopped):
        go(tmp_path / "two", sets, settings=settings, stop=StopAfter(2))
    good = read_checkpoint(tmp_path / "two" / LATEST)["model"]
    assert all(torch.equal(good[name], state["model"][name]) for name in good)


def test_validation_sees_averaged_weights_and_chooses_the_best(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    scores = iter([0.5, 0.9, 0.1])
    seen: list[tuple[int, torch.Tensor]] = []

    class Watch(Observer):
        def validation(self, step: int, figures: Mapping[str, Any]) -> None:
            observed.append((step, figures["score"]))

        def close(self) -> None:
            observed.append((-1, 0.0))

    observed: list[tuple[int, float]] = []

    def validate(network: torch.nn.Module, step: int) -> Mapping[str, float]:
        assert not network.training
        seen.append((step, next(network.parameters()).clone()))
        return {"score": next(scores), "dice_seen": 0.3}

    outcome = go(
        tmp_path,
        sets,
        settings=training(validate_every_steps=2),
        validate=validate,
        observers=[Watch()],
    )
    assert [step for step, _ in seen] == [2, 4, 6]
    assert (outcome.best_score, outcome.best_step) == (0.9, 4)
    best = read_checkpoint(tmp_path / BEST)
    assert best["step"] == 4
    assert torch.equal(next(iter(best["ema"].values())), seen[1][1])
    validations = [line["validation"] for line in lines(tmp_path) if "validation" in line]
    assert [v["score"] for v in validations] == [0.5, 0.9, 0.1]
    assert observed == [(2, 0.5), (4, 0.9), (6, 0.1), (-1, 0.0)]


def test_a_run_starts_from_given_weights(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, sets, init_from=uninterrupted / LATEST, stop=StopAfter(0))
    given = read_checkpoint(uninterrupted / LATEST)["ema"]
    taken = read_checkpoint(tmp_path / LATEST)["model"]
    assert all(torch.equal(given[name], taken[name]) for name in given)


def test_weights_of_another_network_are_refused(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    other = NETWORK.model_copy(update={"queries": 3})
    with pytest.raises(DataRefused, match="do not fit"):
        train(tmp_path, other, training(), sets, PATCH, init_from=uninterrupted / LATEST)


@pytest.mark.parametrize("cuts", [(1, 1, 1, 1), (3, 1), (1, 3)])
def test_parts_of_a_step_give_the_gradient_of_the_whole(
    tmp_path: Path, sets: list[SetForTraining], cuts: tuple[int, ...]
) -> None:
    """Also where one of the episodes has nothing to count, so that the parts' means would not."""
    settings = training(batch=4, steps=1, clip=1e9)
    sampler = EpisodeSampler(read_catalogue(sets), settings, PATCH)
    episodes = [sampler.episode(g) for g in range(4)]
    episodes[0] = replace(episodes[0], counted=torch.zeros_like(episodes[0].counted))
    gradients, losses = [], []
    for parts in ((4,), cuts):
        run = Run(tmp_path, NETWORK, settings, {}, torch.device("cpu"))
        tally, left = Tally(), iter(episodes)
        stepper = Stepper(run, ALONE, EpisodeNetwork(run.network, recompute=False))
        stepper.take([list(islice(left, n)) for n in parts], tally)
        # The first moment after one step is a tenth of the gradient.
        gradients.append(torch.cat([m["exp_avg"].flatten() for m in moments(run)]))
        losses.append(tally.mean("loss"))
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert float((gradients[1] - gradients[0]).norm()) < 1e-4 * float(gradients[0].norm())


def test_an_episode_without_classes_leaves_a_gradient_of_zero_in_every_parameter(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    """Nothing reaches the task encoder; other ranks add up gradients of all parameters."""
    settings = training(batch=1, steps=1)
    episode = blinded(EpisodeSampler(read_catalogue(sets), settings, PATCH).episode(0))
    run = Run(tmp_path, NETWORK, settings, {}, torch.device("cpu"))
    Stepper(run, ALONE, EpisodeNetwork(run.network, recompute=False)).take([[episode]], Tally())
    gradients = [parameter.grad for parameter in run.learning]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert run.progress.skipped == 0


@pytest.mark.parametrize(
    ("episodes", "most", "sizes"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 3, [2, 2, 1]), (2, 32, [1, 1])]
)
def test_a_rank_cuts_its_episodes_into_at_most_so_many_parts(
    episodes: int, most: int, sizes: list[int]
) -> None:
    assert sizes_of_parts(episodes, most) == sizes


def moments(run: Run) -> list[dict[str, torch.Tensor]]:
    return list(run.optimiser.state_dict()["state"].values())


def test_frozen_parts_keep_every_bit(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    go(
        tmp_path,
        sets,
        settings=training(steps=1, freeze=("encoder.*",)),
        init_from=uninterrupted / LATEST,
    )
    given = read_checkpoint(uninterrupted / LATEST)["ema"]
    state = read_checkpoint(tmp_path / LATEST)
    moved = {name for name in given if not torch.equal(given[name], state["model"][name])}
    assert moved == {name for name in given if not name.startswith("encoder.")}
    assert len(state["optimiser"]["state"]) == len(moved)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiling takes minutes on a busy machine
def test_a_compiled_network_trains_alike(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers warn of what they leave as it is
        go(tmp_path, sets, settings=training(compile=True))
    plain, made = (lines(folder)[-1]["loss"] for folder in (uninterrupted, tmp_path))
    assert made == pytest.approx(plain, abs=0.02)


def test_without_a_compiler_a_run_goes_on_without_compiling(
    tmp_path: Path,
    sets: list[SetForTraining],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_compiler(_: object) -> None:
        raise RuntimeError("no compiler was found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert go(tmp_path, sets, settings=training(steps=1, compile=True)).steps == 1
    assert "left out: no compiler was found" in caplog.text


@pytest.mark.slow
def test_a_network_learns_a_task_it_sees_all_the_time(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    settings = training(
        steps=150,
        batch=2,
        log_every=25,
        mixing=only("real"),
        geometry=still(),
        intensity=NO_INTENSITY,
        optimiser=OptimiserSettings(lr=1e-2, warmup=10, final_lr_ratio=0.1),
    )
    go(tmp_path, sets, settings=settings)
    dice = [line["dice"] for line in lines(tmp_path)]
    assert dice[-1] > 0.6
    assert dice[-1] > dice[0] + 0.3


def test_a_run_whose_last_step_was_skipped_has_a_checkpoint(
    tmp_path: Path, sets: list[SetForTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks({5}, monkeypatch)
    assert go(tmp_path, sets).skipped == 1
    assert read_checkpoint(tmp_path / LATEST)["step"] == 6


def test_a_stop_after_a_skipped_step_saves_it(
    tmp_path: Path, sets: list[SetForTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks({0}, monkeypatch)
    with pytest.raises(Stopped, match="everything is saved"):
        go(tmp_path, sets, stop=StopAfter(1))
    state = read_checkpoint(tmp_path / LATEST)
    assert (state["step"], state["skipped_in_a_row"]) == (1, 1)


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    tmp_path: Path, sets: list[SetForTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = step_module.Stepper.take

    def poisoned(self, *arguments):
        take(self, *arguments)
        if self._run.progress.step == 3:
            with torch.no_grad():
                next(self._run.network.parameters()).fill_(float("nan"))

    monkeypatch.setattr(step_module.Stepper, "take", poisoned)
    with pytest.raises(Diverged):
        go(tmp_path, sets, settings=training(checkpoint_every_s=1e-9))
    assert read_checkpoint(tmp_path / LATEST)["step"] == 2
    with pytest.raises(Stopped, match="last good checkpoint stays"):
        go(tmp_path, sets, stop=StopAfter(1))
    assert read_checkpoint(tmp_path / LATEST)["step"] == 2


def test_an_error_of_validation_loses_no_step(tmp_path: Path, sets: list[SetForTraining]) -> None:
    def fails(_: torch.nn.Module, step: int) -> Mapping[str, float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go(tmp_path, sets, settings=training(validate_every_steps=2), validate=fails)
    assert read_checkpoint(tmp_path / LATEST)["step"] == 2


@pytest.mark.parametrize("end", [Stopped("a stop"), SystemExit()], ids=["stopped", "killed"])
def test_a_validation_that_was_cut_short_is_done_when_the_run_goes_on(
    tmp_path: Path, sets: list[SetForTraining], end: BaseException
) -> None:
    """Every step validates once to its end, the last one too: the same best, the same content."""
    settings = training(validate_every_steps=2)
    left, seen = [2, 6], []

    def plain(network: torch.nn.Module, step: int) -> Mapping[str, float]:
        return {"score": {2: 0.9, 4: 0.2, 6: 0.95}[step]}

    def cut_short(network: torch.nn.Module, step: int) -> Mapping[str, float]:
        seen.append(step)
        if step in left:
            left.remove(step)
            raise end
        return plain(network, step)

    for step in (2, 6):
        with pytest.raises(type(end)):
            go(tmp_path / "parts", sets, settings=settings, validate=cut_short)
        assert read_checkpoint(tmp_path / "parts" / LATEST)["step"] == step
    outcome = go(tmp_path / "parts", sets, settings=settings, validate=cut_short)
    assert seen == [2, 2, 4, 6, 6]
    assert (outcome.best_step, outcome.best_score) == (6, 0.95)
    go(tmp_path / "whole", sets, settings=settings, validate=plain)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_time_between_validations_counts_over_all_processes_of_a_run(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, sets, stop=StopAfter(1))
    worked = read_checkpoint(tmp_path / LATEST)["seconds"]
    seen: list[int] = []

    def validate(network: torch.nn.Module, step: int) -> Mapping[str, float]:
        seen.append(step)
        return {}

    with pytest.raises(Stopped):
        go(
            tmp_path,
            sets,
            settings=training(validate_every_s=worked / 2),
            validate=validate,
            stop=StopAfter(0),
        )
    assert seen == [1]


def test_a_finished_run_of_an_earlier_version_owes_no_validation(
    tmp_path: Path, sets: list[SetForTraining], uninterrupted: Path
) -> None:
    state = read_checkpoint(uninterrupted / LATEST)
    kept = {name: value for name, value in state.items() if not name.startswith("validated_")}
    write_checkpoint(tmp_path, kept)

    def fails(_: torch.nn.Module, step: int) -> Mapping[str, float]:
        raise ZeroDivisionError

    assert go(tmp_path, sets, validate=fails).steps == 6


@pytest.mark.parametrize(("score", "compare"), [({}, True), ({"score": 0.5}, False)])
def test_without_a_score_that_compares_there_is_no_best(
    tmp_path: Path, sets: list[SetForTraining], score: dict[str, float], compare: bool
) -> None:
    figures = {**score, "failed/s/k1": "a file is gone"}
    outcome = go(
        tmp_path,
        sets,
        settings=training(steps=1),
        validate=lambda network, step: figures,
        scores_compare=compare,
    )
    assert outcome.best_score is None
    assert not (tmp_path / BEST).exists()
    assert lines(tmp_path)[-1]["validation"]["failed/s/k1"] == "a file is gone"


def test_the_best_score_is_in_the_checkpoint_of_its_step(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    go(tmp_path, sets, settings=training(steps=1), validate=lambda network, step: {"score": 0.5})
    assert read_checkpoint(tmp_path / LATEST)["best_score"] == 0.5


def test_two_processes_do_not_train_into_one_folder(
    tmp_path: Path, sets: list[SetForTraining]
) -> None:
    def second(_: torch.nn.Module, step: int) -> Mapping[str, float]:
        with pytest.raises(EnvironmentProblem, match="another process") as refused:
            go(tmp_path, sets)
        assert str(os.getpid()) in str(refused.value.found)
        return {"score": 0.0}

    go(tmp_path, sets, settings=training(steps=1), validate=second)
    assert not (tmp_path / CLAIMS).exists()
