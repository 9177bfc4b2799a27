"""Thread settings: passive waiting always, counts where asked."""

from __future__ import annotations

from iris_cli.execution.threads import configure, settings


def test_passive_waiting_is_always_set() -> None:
    environment: dict[str, str] = {}
    assert configure(None, environment) == environment
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_NUM_THREADS" not in environment


def test_a_given_count_wins_over_the_environment() -> None:
    environment = {"OMP_NUM_THREADS": "8"}
    configure(2, environment)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"


def test_what_the_user_has_set_is_left_alone() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "8"}
    set_here = configure(None, environment)
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"
    assert environment["OMP_NUM_THREADS"] == "8"
    assert "OMP_WAIT_POLICY" not in set_here


def test_settings_without_a_count_name_no_count() -> None:
    assert not [name for name in settings(None) if name.endswith("NUM_THREADS")]
