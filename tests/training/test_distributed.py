"""Several ranks do what one process does; a stop, a fault or a death of one reaches all."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iris_cli.errors import EnvironmentProblem, Stopped, UsageError
from iris_cli.execution.signals import StopRequest
from iris_cli.network.iris_network import IrisNetwork
from iris_cli.training.checkpoint import LATEST, read_checkpoint, write_checkpoint
from iris_cli.training.distributed import ALONE, RankEpisodes, RankLost
from iris_cli.training.launch import launch
from iris_cli.training.settings import OptimiserSettings, SetForTraining
from tests.training.ranks import NETWORK, Seen, Training, agree, hang
from tests.training.stores import balls, training

CPUS = ("cpu", "cpu")
# LAMB at its usual rate blows the rounding of float32 up tenfold every few steps.
GENTLE = OptimiserSettings(warmup=2, lr=2e-4)
# LAMB takes the same step whatever the gradient is multiplied by, so losses alone would not show
# that it was added up wrongly: its norm does.
LOSS = 1e-5
NORM = 1e-3


class Of:
    """A rank of several, as far as sharing out episodes needs it."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[SetForTraining, ...]:
    return (balls(tmp_path_factory.mktemp("store")),)


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, sets: tuple[SetForTraining, ...]
) -> tuple[Training, Seen]:
    """Twenty steps of one process."""
    settings = training(steps=20, log_every=1, optimiser=GENTLE, checkpoint_every_s=1e9)
    work = Training(tmp_path_factory.mktemp("alone"), sets, settings)
    torch.set_num_threads(1)
    with StopRequest() as stop:
        figures, _ = work("cpu", stop)
    return work, figures


def run(work: Training) -> tuple[Seen, list[object]]:
    with StopRequest() as stop:
        return launch(work, CPUS, stop, threads=1)


def assert_alike(found: Seen, expected: Seen) -> None:
    assert len(found) == len(expected)
    for of_found, of_expected, tolerance in zip(
        zip(*found, strict=True),
        zip(*expected, strict=True),
        ({"abs": LOSS}, {"rel": NORM}),
        strict=True,
    ):
        assert of_found == pytest.approx(of_expected, **tolerance)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_every_episode_once(world: int) -> None:
    settings = training(steps=5, batch=8, accumulation=5)
    shares = [RankEpisodes.of(Of(rank, world), settings, 2) for rank in range(world)]  # type: ignore[arg-type]
    assert sorted(g for share in shares for g in share) == list(range(2 * 8, 5 * 8))
    # All ranks make the episodes of the same step at the same time.
    per_step = 8 // world
    steps = [{g // 8 for g in share[:per_step]} for share in shares]
    assert steps == [{2}] * world


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UsageError, match="evenly") as refused:
        RankEpisodes.of(Of(0, 3), training(batch=8), 0)  # type: ignore[arg-type]
    assert "batch 8 over 3 ranks" in str(refused.value.found)
    assert "multiple of 3" in str(refused.value.expected)


def test_one_process_agrees_with_itself() -> None:
    assert ALONE.sum([2.0], "") == [2.0]
    assert ALONE.gather("x", "") == ["x"]
    assert ALONE.from_first(lambda: 3, "") == 3


@pytest.mark.slow
def test_two_ranks_agree() -> None:
    with StopRequest() as stop:
        found = launch(agree, CPUS, stop, threads=1)
    assert found["backend"] == "gloo"
    assert [each["rank"] for each in found["all"]] == [0, 1]
    for each in found["all"]:
        assert each["sum"] == [2.0, 1.0]
        assert each["one"] == [3.0, 3.0, 3.0]
        assert each["many"] == [[0.0, 3.0], [6.0, 9.0]]
        assert each["first"] == 0
        assert each["refused"] == "only rank 0 looked"


def test_two_ranks_train_as_one_process_does(tmp_path: Path, alone: tuple[Training, Seen]) -> None:
    """The same episodes, loss within 1e-5 over 20 steps, the same memory bank; nothing random."""
    work, expected = alone
    figures, randoms = run(replace(work, folder=tmp_path))
    assert len(figures) == 20
    assert_alike(figures, expected)
    assert randoms[0] == randoms[1]
    one, two = (read_checkpoint(folder / LATEST) for folder in (work.folder, tmp_path))
    assert torch.equal(one["rng"], two["rng"])
    assert one["bank"]["counts"] == two["bank"]["counts"]
    assert sum(one["bank"]["counts"]) > 0
    for a, b in zip(one["bank"]["tokens"], two["bank"]["tokens"], strict=True):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.slow
def test_a_stop_of_one_rank_stops_all_and_one_process_goes_on(
    tmp_path: Path, alone: tuple[Training, Seen]
) -> None:
    """Exit 75 with everything saved; a run of two ranks goes on with one: the same episodes."""
    work, expected = alone
    work = replace(work, folder=tmp_path)
    with pytest.raises(Stopped, match="after 5 of 20 steps: a test; everything is saved"):
        run(replace(work, stops=(1, 4 + 1)))
    assert read_checkpoint(tmp_path / LATEST)["step"] == 5
    with StopRequest() as stop:
        figures, _ = work("cpu", stop)
    assert_alike(figures, expected[5:])


@pytest.mark.slow
def test_a_rank_whose_episodes_show_no_class_adds_zeros(
    tmp_path: Path, sets: tuple[SetForTraining, ...]
) -> None:
    """Nothing reaches its task encoder: ranks with gradients of other tensors would not add up."""
    figures, _ = run(Training(tmp_path, sets, training(steps=3, log_every=1), blind=(1, 1)))
    assert [loss is not None and norm is not None for loss, norm in figures] == [True] * 3
    assert read_checkpoint(tmp_path / LATEST)["skipped"] == 0


@pytest.mark.slow
def test_ranks_that_begin_with_other_weights_are_refused(
    tmp_path: Path, sets: tuple[SetForTraining, ...]
) -> None:
    """Rank 1 alone starts from given weights, as where a file differs from node to node."""
    given = write_checkpoint(tmp_path / "given", {"ema": IrisNetwork(NETWORK).state_dict()})
    work = Training(tmp_path / "run", sets, training(), starts_from=given)
    with pytest.raises(EnvironmentProblem, match="same weights") as refused:
        run(work)
    assert "in rank 1" in str(refused.value.found)
    assert not (tmp_path / "run" / LATEST).exists()


@pytest.mark.slow
def test_want_of_memory_in_one_rank_is_no_defect(
    tmp_path: Path, sets: tuple[SetForTraining, ...]
) -> None:
    with pytest.raises(EnvironmentProblem, match="not enough memory in rank 1") as lacking:
        run(Training(tmp_path, sets, training(), exhausted=(1, 1)))
    assert lacking.value.exit_code == 5


@pytest.mark.slow
def test_a_loss_of_one_rank_that_is_not_finite_skips_the_step_in_all(
    tmp_path: Path, alone: tuple[Training, Seen]
) -> None:
    work = replace(alone[0], folder=tmp_path, settings=training(steps=4), breaks=(1, 2))
    run(work)
    state = read_checkpoint(tmp_path / LATEST)
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (4, 1, 0)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_is_named(
    tmp_path: Path, alone: tuple[Training, Seen]
) -> None:
    with pytest.raises(EnvironmentProblem, match=r"rank 1 has ended: killed by signal 9"):
        run(replace(alone[0], folder=tmp_path, killed=(1, 2)))
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("iris-rank")]


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_says_for_whom_and_for_what() -> None:
    with StopRequest() as stop, pytest.raises(RankLost) as lost:
        launch(hang, CPUS, stop, threads=1)
    message = str(lost.value)
    assert "rank 0 waited" in message
    assert "the losses of step 2; rank 1 (last seen at the losses of step 1)" in message
    assert "has not answered" in message
    assert "training.timeout_s" in message
