from __future__ import annotations

import threading
import warnings

import pytest
import torch

from iris_cli.errors import UsageError
from iris_cli.network.precision import (
    _tf32_settings,
    _without_tf32,
    autocast_type,
    choose_precision,
    compute_in,
)

CPU = torch.device("cpu")


def fake_cpu(monkeypatch: pytest.MonkeyPatch, *, avx512_bf16: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


def test_precision_is_what_was_asked_for() -> None:
    assert autocast_type("float32", CPU) is None
    assert autocast_type("bfloat16", CPU) is torch.bfloat16
    assert autocast_type("fp16", CPU) is torch.float16
    assert autocast_type("auto", torch.device("meta")) is None


def test_full_precision_changes_no_type() -> None:
    with compute_in(None, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with compute_in(torch.bfloat16, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "chosen"),
    [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_auto_is_bf16_only_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, chosen: str
) -> None:
    fake_cpu(monkeypatch, avx512_bf16=avx512_bf16, amx=amx)
    assert choose_precision("auto", "cpu") == chosen
    assert choose_precision("fp32", "cpu") == "fp32"


def test_emulated_half_precision_and_other_words_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_cpu(monkeypatch, avx512_bf16=False, amx=False)
    with pytest.raises(UsageError, match="does not compute in bf16"):
        choose_precision("bf16", "cpu")
    with pytest.raises(UsageError, match="does not compute in fp16"):
        choose_precision("fp16", "cpu")
    with pytest.raises(UsageError, match="no such precision"):
        choose_precision("half", "cpu")


def test_auto_on_cuda_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert choose_precision("auto", "cuda:0") == chosen
    assert choose_precision("fp16", "cuda:0") == "fp16"


def tf32_of_cuda() -> list[object]:
    return [getattr(place, name) for place, name, _ in _tf32_settings()]


def test_full_precision_on_cuda_is_without_tf32_and_leaves_torch_as_it_was() -> None:
    """The settings exist without a device; autocast warns that there is none."""
    cuda, before = torch.device("cuda"), tf32_of_cuda()
    full = [value for _, _, value in _tf32_settings()]
    assert torch.backends.cudnn.allow_tf32
    assert before != full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with compute_in(None, cuda):
            assert tf32_of_cuda() == full
            with compute_in(None, cuda):
                pass
            assert tf32_of_cuda() == full
        assert tf32_of_cuda() == before
        with pytest.raises(RuntimeError, match="broken"), compute_in(None, cuda):
            raise RuntimeError("broken")
        with compute_in(torch.bfloat16, cuda), compute_in(None, CPU):
            assert tf32_of_cuda() == before
    assert tf32_of_cuda() == before
    assert torch.backends.cudnn.allow_tf32


def test_threads_in_full_precision_do_not_undo_each_other() -> None:
    before, (first, second) = tf32_of_cuda(), (threading.Event(), threading.Event())

    def other() -> None:
        with _without_tf32:
            first.set()
            second.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    first.wait(5)
    with _without_tf32:
        second.set()
        thread.join()
        assert tf32_of_cuda() != before
    assert tf32_of_cuda() == before
