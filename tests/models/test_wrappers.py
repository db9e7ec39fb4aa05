from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from coprobe.errors import InputError
from coprobe.models.wrappers import unwrapped


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_plain_network_comes_back_itself() -> None:
    network = small()
    assert unwrapped(network) is network


def test_compile_and_data_parallel_come_off_in_any_order() -> None:
    network = small()
    assert unwrapped(nn.DataParallel(network)) is network
    assert unwrapped(torch.compile(network)) is network
    assert unwrapped(torch.compile(nn.DataParallel(torch.compile(network)))) is network
    assert unwrapped(nn.DataParallel(torch.compile(nn.DataParallel(network)))) is network


def test_distributed_data_parallel_comes_off(group: None) -> None:
    network = small()
    assert unwrapped(torch.compile(nn.parallel.DistributedDataParallel(network))) is network


def test_shards_are_refused(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = small()
    fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(InputError, match=r"weights of the model are shards .* save the full state_dict"):
        unwrapped(network)
    with pytest.raises(InputError, match="weights of its part '0' are shards"):
        unwrapped(nn.Sequential(network))


@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_a_model_wrapped_by_the_first_fsdp_is_refused(group: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(small(), device_id=torch.device("cpu"))
    with pytest.raises(InputError, match="weights of the model are shards"):
        unwrapped(wrapped)


def test_shards_of_a_weight_alone_are_refused(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    network = small()
    mesh = init_device_mesh("cpu", (1,))
    network[3].weight = nn.Parameter(distribute_tensor(network[3].weight.detach(), mesh))
    with pytest.raises(InputError, match="weights of its part '3' are shards"):
        unwrapped(nn.DataParallel(network))


@pytest.mark.filterwarnings("ignore::FutureWarning:torch.jit")
def test_programs_are_refused() -> None:
    traced = torch.jit.trace(small(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="the model is a TorchScript program"):
        unwrapped(traced)
    with pytest.raises(InputError, match="its part '1' is a TorchScript program"):
        unwrapped(nn.Sequential(nn.Identity(), traced))
    exported = torch.export.export(small(), (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(InputError, match="give the network it was exported from"):
        unwrapped(exported)


def test_a_wrapper_inside_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"its part '1' is wrapped \(in DataParallel\)"):
        unwrapped(nn.Sequential(nn.Identity(), nn.DataParallel(small())))
    with pytest.raises(InputError, match=r"its part '0' is wrapped \(in OptimizedModule\)"):
        unwrapped(nn.Sequential(torch.compile(small())))


def test_compiled_in_place_is_refused() -> None:
    network = small()
    network[3].compile()
    with pytest.raises(InputError, match=r"its part '3' was compiled in place by its compile\(\)"):
        unwrapped(network)


@pytest.mark.parametrize("thing", [None, {"a": torch.zeros(1)}, nn.Conv2d], ids=["None", "dict", "class"])
def test_what_is_no_module_is_refused(thing: object) -> None:
    with pytest.raises(InputError, match=r"is no torch\.nn\.Module"):
        unwrapped(thing)  # type: ignore[arg-type]
