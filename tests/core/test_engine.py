from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coprobe.core.engine import BatchSize, choose_device, frozen, in_batches, is_out_of_memory, kind_of, one_thread
from coprobe.errors import InputError, RunError

OUT_OF_MEMORY: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried 8 bytes"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]
OTHER: list[Exception] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError("out of memory"),
]


class Work:
    """Ranges that were done; more than `capacity` items at once raise `error`."""

    def __init__(self, capacity: int, error: Exception) -> None:
        self.capacity, self.error = capacity, error
        self.tried: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> tuple[int, int]:
        self.tried.append((start, stop))
        if stop - start > self.capacity:
            raise self.error
        return start, stop


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[-40:] or "MemoryError")
def test_memory_running_out_halves_the_range(error: Exception) -> None:
    assert is_out_of_memory(error)
    work = Work(20, error)
    assert list(in_batches(60, work)) == [(0, 15), (15, 30), (30, 45), (45, 60)]
    assert work.tried[:3] == [(0, 60), (0, 30), (0, 15)]


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_pass(error: Exception) -> None:
    assert not is_out_of_memory(error)
    work = Work(0, error)
    with pytest.raises(type(error)) as raised:
        list(in_batches(3, work))
    assert raised.value is error and len(work.tried) == 1


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[-40:] or "MemoryError")
def test_given_batch_size_is_kept(error: Exception) -> None:
    work = Work(7, error)
    with pytest.raises(RunError) as raised:
        list(in_batches(100, work, BatchSize(8)))
    assert str(raised.value) == "out of memory with 8 images at once; lower --batch-size"
    assert raised.value.__cause__ is error
    assert work.tried == [(0, 8)]


@pytest.mark.parametrize("batch_size", [None, 1])
def test_not_even_one_fits(batch_size: int | None) -> None:
    with pytest.raises(RunError) as raised:
        list(in_batches(3, Work(0, MemoryError()), BatchSize(batch_size)))
    assert str(raised.value) == "out of memory with a single image; use another --device"


@pytest.mark.parametrize(("device", "first"), [("cpu", 64), ("cuda", 512), ("cuda:1", 512), ("mps", 512)])
def test_first_size(device: str, first: int) -> None:
    assert next(in_batches(10_000, lambda start, stop: stop - start, BatchSize(device=device))) == first


@pytest.mark.parametrize("batch_size", [0, -4])
def test_batch_size_below_one(batch_size: int) -> None:
    with pytest.raises(InputError) as raised:
        list(in_batches(3, Work(9, MemoryError()), BatchSize(batch_size)))
    assert str(raised.value) == f"--batch-size {batch_size}: must be at least 1"


@settings(deadline=None, derandomize=True)
@given(count=st.integers(0, 700), batch_size=st.none() | st.integers(1, 300), capacities=st.lists(st.integers(1, 600)))
def test_ranges_cover_everything_once_and_in_order(count: int, batch_size: int | None, capacities: list[int]) -> None:
    """Also while the memory that is free changes from one call to the next."""
    free = iter(capacities)

    def work(start: int, stop: int) -> tuple[int, int]:
        if batch_size is None and stop - start > next(free, 600):
            raise MemoryError
        return start, stop

    done = list(in_batches(count, work, BatchSize(batch_size)))
    assert [i for start, stop in done for i in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in done]
    assert all(size > 0 for size in sizes)
    if batch_size is not None:
        assert all(size == batch_size for size in sizes[:-1])
    assert all(after <= before for before, after in itertools.pairwise(sizes))


def test_nothing_is_done_ahead_of_the_caller() -> None:
    work = Work(9, MemoryError())
    batches = in_batches(6, work, BatchSize(2))
    next(batches)
    assert work.tried == [(0, 2)]


def test_what_failed_is_freed_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception holds the frames that failed, and they hold the tensors that did not fit beside others."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[-1]() is not None))

    def work(start: int, stop: int) -> int:
        large = torch.zeros(4)
        held.append(weakref.ref(large))
        if stop - start > 1:
            raise RuntimeError("CUDA out of memory")
        return stop

    assert list(in_batches(4, work)) == [1, 2, 3, 4]
    assert alive == [False, False]


def test_a_size_is_kept_from_one_piece_of_work_to_the_next_of_its_kind() -> None:
    """Not from one kind, or one device, to another; and what a person gave is not touched."""
    list(in_batches(50, Work(30, MemoryError()), BatchSize(kind=("wide", 32))))
    again = Work(30, MemoryError())
    assert list(in_batches(60, again, BatchSize(kind=("wide", 32)))) == [(0, 25), (25, 50), (50, 60)]
    assert again.tried == [(0, 25), (25, 50), (50, 60)]
    assert BatchSize(kind=("narrow", 32)).now == BatchSize().now == 64
    assert BatchSize(device="cuda", kind=("wide", 32)).now == 512
    assert BatchSize(70, kind=("wide", 32)).now == 70


def test_kinds_are_the_sizes_of_weights_images_and_numbers() -> None:
    model = nn.Linear(3, 2)
    kind = kind_of(model, (3, 8, 8))
    assert kind_of(nn.Linear(3, 2), [3, 8, 8]) == kind
    assert kind_of(nn.Linear(2, 3), (3, 8, 8)) != kind and kind_of(model, (3, 8, 9)) != kind
    model.precision = "bf16"
    assert kind_of(model, (3, 8, 8)) != kind


@pytest.mark.parametrize(
    ("few", "now", "padded"),
    [
        (False, 128, {1: 16, 15: 16, 16: 16, 17: 17, 127: 127, 128: 128}),
        (False, 8, {1: 8, 7: 8, 8: 8}),
        (True, 128, {1: 16, 16: 16, 17: 32, 33: 64, 64: 64, 65: 128, 128: 128}),
        (True, 100, {1: 25, 25: 25, 26: 50, 51: 100, 100: 100}),
        (True, 12, {1: 12, 12: 12}),
    ],
)
def test_batches_are_filled_up(few: bool, now: int, padded: dict[int, int]) -> None:
    size = BatchSize(now, few_sizes=few)
    assert {count: size.padded(count) for count in padded} == padded


@pytest.mark.parametrize("ambient", ["tf32", "ieee"])
@pytest.mark.parametrize(("precision", "inside"), [("32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), (None, None)])
def test_a_models_precision_decides_about_float32_products_while_it_is_frozen(
    ambient: str, precision: str | None, inside: str | None
) -> None:
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    model = nn.Linear(2, 2)
    if precision:
        model.precision = precision
    given = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = ambient
        with pytest.raises(KeyError), frozen(model):
            assert [switch.fp32_precision for switch in switches] == [inside or ambient] * 2
            raise KeyError
        assert [switch.fp32_precision for switch in switches] == [ambient] * 2
    finally:
        for switch, before in zip(switches, given, strict=True):
            switch.fp32_precision = before


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """So many CUDA devices, and MPS or not."""
    cuda, mps = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("accelerators", "name", "device"),
    [
        ((0, False), "auto", "cpu"),
        ((0, True), "auto", "mps"),
        ((2, True), "auto", "cuda"),
        ((2, True), "cpu", "cpu"),
        ((2, False), "cuda", "cuda"),
        ((2, False), "cuda:1", "cuda:1"),
        ((2, True), "mps", "mps"),
    ],
    indirect=["accelerators"],
)
def test_device_that_is_there(accelerators: None, name: str, device: str) -> None:
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("accelerators", "name"),
    [
        ((0, False), "cuda"),
        ((0, True), "cuda:0"),
        ((2, True), "cuda:2"),
        ((2, False), "mps"),
        ((2, True), "mps:1"),
        ((2, True), "meta"),
        ((2, True), "xpu"),
    ],
    indirect=["accelerators"],
)
def test_device_that_is_not_there(accelerators: None, name: str) -> None:
    with pytest.raises(InputError) as error:
        choose_device(name)
    assert str(error.value) == f"--device {name}: this machine has no such device; use --device cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:-1", "cuda:x", "CPU"])
def test_name_that_is_no_device(name: str) -> None:
    with pytest.raises(InputError) as error:
        choose_device(name)
    assert str(error.value) == f"--device '{name}' is no device; use cpu, cuda, cuda:1 or mps"


def mixed() -> nn.Sequential:
    """Modules in both modes and parameters with and without gradients, one of them shared."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 3))
    model.train()
    model[1][0].eval()
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    return model


def flags(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("raising", [False, True])
def test_frozen_inside_and_as_before_outside(raising: bool) -> None:
    model = mixed()
    before = flags(model)
    assert True in before[0] and False in before[0] and True in before[1] and False in before[1]
    try:
        with frozen(model):
            with frozen(model):
                assert not any(itertools.chain(*flags(model)))
            assert not any(itertools.chain(*flags(model)))
            model(torch.rand(4, 3))
            if raising:
                raise KeyError
    except KeyError:
        assert raising
    assert flags(model) == before
    assert model[1][0].num_batches_tracked == 0


def test_frozen_restores_a_model_whose_eval_fails() -> None:
    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> Stubborn:
            raise KeyError

    model = mixed().append(Stubborn())
    before = flags(model)
    with pytest.raises(KeyError), frozen(model):
        pass
    assert flags(model) == before


def test_one_thread_and_then_as_many_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError), one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
