"""Checkpoints: what is read, what is refused, and that nothing in a file is ever run."""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from safetensors.torch import save_file

import coprobe.core.files
from coprobe.checkpoint import Checkpoint, find_file, load
from coprobe.checkpoint.reader import Contents
from coprobe.errors import InputError
from coprobe.models import Classifier, build, defaults

ARGS = {"width": 2, "num_classes": 3, "in_channels": 1}


def make(arch="resnet18", mean=None, std=None, **arch_args):
    torch.manual_seed(0)
    arch_args = {**ARGS, **arch_args}
    model = Classifier(build(arch, **arch_args), mean, std).eval()
    return Checkpoint(model, arch, arch_args, {"data": "digits", "eps_train": 8.0}, {"epoch": 3}, (1, 32, 32))


@pytest.fixture(scope="module")
def ours():
    return make(mean=(0.4,), std=(0.3,))


@pytest.fixture(scope="module")
def weights(ours):
    return {name: tensor.clone() for name, tensor in ours.model.network.state_dict().items()}


def logits(checkpoint):
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return checkpoint.model(images)


def refusal(path, **options):
    """The one line with which `path` is refused, without torch's warnings beside it."""
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("error")
        load(path, **options)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) <= 300 and "weights_only" not in line
    return line


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_ours_round_trips_with_everything_that_is_known(ours, tmp_path, suffix):
    ours.save(tmp_path / f"c{suffix}")
    read = load(tmp_path / f"c{suffix}")
    assert torch.equal(logits(read), logits(ours))
    assert (read.arch, read.arch_args, read.recipe, read.metrics) == (ours.arch, ARGS, ours.recipe, ours.metrics)
    assert (read.model.mean, read.model.std, read.image_shape) == ((0.4,), (0.3,), (1, 32, 32))
    assert (read.num_classes, read.in_channels, read.layout) == (3, 1, "coprobe/2")
    assert read.container == {".pt": "zip", ".safetensors": "safetensors"}[suffix]
    assert not read.model.training


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
@pytest.mark.parametrize("key", ["", "net", "weights_of_mine"])
def test_public_layouts(ours, weights, tmp_path, key, prefix, legacy):
    named = {prefix + name: tensor for name, tensor in weights.items()}
    payload = {"epoch": 7, key: named, "optimizer": {"state": {}}} if key else named
    torch.save(payload, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    read = load(tmp_path / "c.pth", mean=(0.4,), std=(0.3,))
    assert torch.equal(logits(read), logits(ours))
    assert read.container == ("legacy pickle" if legacy else "zip")
    assert read.layout.count("removed") == prefix.count(".")
    assert (f"'{key}'" if key else "bare") in read.layout
    assert read.recipe == {} and read.image_shape is None


def test_files_without_batch_counters_are_read(ours, weights, tmp_path):
    torch.save({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, tmp_path / "c.pt")
    assert torch.equal(logits(load(tmp_path / "c.pt", mean=(0.4,), std=(0.3,))), logits(ours))


@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet18", "vgg11", "wrn-28-10"])
def test_architecture_width_and_classes_are_inferred(tmp_path, arch):
    saved = make(arch, width=2, num_classes=7)
    torch.save(saved.model.network.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    assert (read.arch, read.arch_args["num_classes"], read.arch_args["width"]) == (arch, 7, 2)
    assert torch.equal(logits(read), logits(saved))


def test_what_weights_cannot_tell_is_assumed_aloud_and_can_be_said(tmp_path):
    saved = make("preact-resnet18")
    torch.save(saved.model.network.state_dict(), tmp_path / "c.pt")
    assert "assumed" in load(tmp_path / "c.pt").layout
    shortcut = next(name for name in defaults("preact-resnet18") if name not in ARGS)
    value = defaults("preact-resnet18")[shortcut]
    told = load(tmp_path / "c.pt", arch_args={shortcut: value})
    assert told.arch_args[shortcut] == value and "shortcut" not in told.layout


def test_the_digest_does_not_depend_on_the_container(ours, weights, tmp_path):
    ours.save(tmp_path / "a.pt")
    ours.save(tmp_path / "a.safetensors")
    torch.save({"net": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "b.pt")
    assert {load(tmp_path / name).digest for name in ("a.pt", "a.safetensors", "b.pt")} == {ours.digest}
    changed = {**weights, "linear.bias": weights["linear.bias"] + 1e-6}
    torch.save(changed, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").digest != ours.digest


class Bomb:
    """Unpickled carelessly, calls `function` with `argument`."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["system", "eval"])
def test_a_hostile_pickle_never_fires(weights, tmp_path, kind, legacy):
    sentinel = tmp_path / "fired"
    bomb = {
        "system": Bomb(os.system, f"touch '{sentinel}'"),
        "eval": Bomb(eval, f"__import__('pathlib').Path({str(sentinel)!r}).touch()"),
    }[kind]
    path = tmp_path / "c.pt"
    torch.save({"state_dict": weights, "extra": bomb}, path, _use_new_zipfile_serialization=not legacy)
    read = load(path)
    assert any("names code, which is never run" in note and kind in note for note in read.notes)
    assert read.layout.startswith("state dict under 'state_dict'")
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # the control: it would have fired
    assert sentinel.exists()


def saved_bytes(ours, container):
    buffer = io.BytesIO()
    state = ours.model.network.state_dict()
    if container == "safetensors":
        from safetensors.torch import save

        return save(state)
    torch.save(state, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused(ours, tmp_path, container):
    whole = saved_bytes(ours, container)
    path = tmp_path / "c.pt"
    cuts = {*range(1, 12), 63, 64, 65, len(whole) - 1, len(whole) - 2, len(whole) - 9, len(whole) - 30}
    cuts |= {len(whole) * k // 25 for k in range(1, 25)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        refusal(path)
    path.write_bytes(whole)
    load(path)


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x05", (500).to_bytes(8, "little") + b"{"])
def test_garbage_is_refused(tmp_path, head):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 9, 70, 2000):
        noise = bytes(torch.randint(0, 256, (size,), generator=generator).tolist())
        (tmp_path / "c.pt").write_bytes(head + noise)
        refusal(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({}, "it holds nothing"),
        ({"epoch": 3, "lr": 0.1}, "it holds 'epoch', 'lr'"),
        (torch.ones(2, 3), "it is one tensor, 2×3"),
        ([1, 2], "it is a list"),
        (argparse.Namespace(lr=1), "it is a argparse.Namespace"),
    ],
    ids=["empty", "facts", "tensor", "list", "object"],
)
def test_what_holds_no_network_is_said(tmp_path, payload, said):
    torch.save(payload, tmp_path / "c.pt")
    assert f"holds no network ({said}); save model.state_dict()" in refusal(tmp_path / "c.pt")


PEAK = """
import resource, sys
import torch
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import coprobe
coprobe.load(sys.argv[1]).digest
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.procs
def test_loading_takes_little_more_than_the_file(tmp_path):
    path = tmp_path / "c.pt"
    network = build("resnet18", width=112)
    torch.save({"model": network.state_dict(), "optimizer": {"state": {0: torch.zeros(10**7)}}}, path)
    weights = sum(tensor.nbytes for tensor in network.state_dict().values()) / 2**20
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert weights > 100 and float(done.stdout) < weights + 40


def test_a_missing_file_a_folder_and_a_loop_of_links(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pt")
    assert "directory without a checkpoint.pt" in refusal(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "check the path" in refusal(tmp_path / "loop")
    with pytest.raises(InputError, match="check the path"):
        load("x" * 5000)


def test_a_folder_stands_for_our_file_before_those_of_hugging_face(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    for name in ("pytorch_model.bin", "model.safetensors", "checkpoint.pt"):
        (tmp_path / name).write_bytes(b"x")
        assert find_file(tmp_path) == tmp_path / name


def test_a_folder_of_shards_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"is a folder of shards \(pytorch_model.bin.index.json\); merge them"):
        find_file(tmp_path)


@pytest.mark.parametrize("name", ["absent", "a\0b", "n" * 5000])
def test_names_without_a_file(tmp_path, name):
    with pytest.raises(InputError):
        find_file(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    lines = []
    reader = threading.Thread(target=lambda: lines.append(refusal(tmp_path / "pipe")), daemon=True)
    reader.start()
    reader.join(10)
    assert lines and "no regular file" in lines[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(weights, tmp_path, value):
    poisoned = weights["layer1.0.conv1.weight"].clone()
    poisoned.view(-1)[3] = value
    torch.save({**weights, "layer1.0.conv1.weight": poisoned}, tmp_path / "c.pt")
    assert "'layer1.0.conv1.weight' is not finite" in refusal(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "complex", "meta", "quantised"],
)
def test_weights_that_are_no_plain_tensors_are_refused(weights, tmp_path, change):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({**weights, "linear.weight": change(weights["linear.weight"])}, tmp_path / "c.pt")
    refusal(tmp_path / "c.pt")


def test_mismatches_are_counted_and_the_first_five_listed(weights, tmp_path):
    torch.save(weights, tmp_path / "c.pt")
    line = refusal(tmp_path / "c.pt", arch_args={"width": 3})
    counted = int(re.search(r"(\d+) weights don't fit resnet18", line)[1])
    assert counted > 50 and line.count(" instead of ") == 3 and ", …)" in line
    rest = {name: tensor for name, tensor in weights.items() if name != "linear.bias"}
    torch.save({**rest, "head.scale": torch.ones(1)}, tmp_path / "c.pt")
    line = refusal(tmp_path / "c.pt", arch="resnet18")
    assert "2 weights don't fit" in line and "missing linear.bias (3)" in line and "unexpected head.scale (1)" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "vgg11"}, "don't fit vgg11 (missing features.0.weight"),
        ({"arch_args": {"widht": 2}}, "has no argument 'widht'"),
        ({"arch_args": {"width": 10**7}}, "don't fit resnet18"),
        ({"arch_args": {"width": 10**30}}, "c.pt: "),
        ({"mean": (0.1, 0.2)}, "one number per channel"),
        ({"std": (0.0,)}, "not positive"),
    ],
    ids=["other", "argument", "large", "overflow", "mean", "std"],
)
def test_options_that_do_not_fit_are_refused(ours, weights, tmp_path, options, said):
    torch.save(weights, tmp_path / "c.pt")
    assert said in refusal(tmp_path / "c.pt", **options)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("file", {"arch": "resnet81"}, "did you mean resnet18"),
        ("file", {"arch": "timn:resnet18"}, "did you mean timm"),
        ("file", {"arch": "resnet18", "model": "net.py:Net"}, "leave out --arch"),
        ("file", {"model": "net.py:Net"}, "net.py: no such file"),
        ("file", {"model_args": {"width": 2}}, "--model-arg without --model"),
        ("-", {"arch": "torchvision:resnet18"}, "pass --model"),
    ],
)
def test_options_that_contradict_or_name_nothing(ours, tmp_path, path, options, said):
    ours.save(tmp_path / "file")
    with pytest.raises(InputError, match=re.escape(said)):
        load(path if path == "-" else tmp_path / path, **options)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arch", 3),
        ("arch", "resnet81"),
        ("arch_args", "width"),
        ("arch_args", {"width": "2"}),
        ("arch_args", {**ARGS, "num_classes": 10**18}),
        ("preprocess", [1]),
        ("preprocess", {"mean": "grey"}),
        ("preprocess", {"mean": [0.0], "std": [0.0]}),
        ("recipe", "mine"),
        ("metrics", [1]),
        ("image_shape", "wide"),
        ("image_shape", [1, 32]),
        ("image_shape", [1, 32, -0.5]),
        ("format", "coprobe/2"),  # without the seal
        ("format", "coprobe/3"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_our_files_with_a_damaged_description_are_refused(ours, weights, tmp_path, suffix, key, value):
    about = {"format": "coprobe/1", "arch": "resnet18", "arch_args": ARGS, key: value}
    path = tmp_path / f"c{suffix}"
    if suffix == ".pt":
        torch.save({**about, "state_dict": weights}, path)
    else:
        save_file(weights, path, {"coprobe": json.dumps(about)})
    refusal(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(ours, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"c{suffix}"
    ours.save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(coprobe.core.files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(width=3).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_weight_can_be_allowed_and_is_recorded(weights, tmp_path):
    rest = {f"module.{name}": tensor for name, tensor in weights.items() if not name.startswith("linear.")}
    torch.save({"net": rest | {"module.linear.weight": weights["linear.weight"]}}, tmp_path / "c.pt")
    line = refusal(tmp_path / "c.pt")
    assert "missing linear.bias (3)" in line and "--allow-missing 'linear.bias' does without" in line
    read = load(tmp_path / "c.pt", allow_missing=["linear.b*"])
    assert read.allowed_mismatch == {"missing": ["linear.bias"]} == read.facts()["allowed_mismatch"]
    assert torch.equal(
        read.model.network.linear.bias, load(tmp_path / "c.pt", allow_missing=["*"]).model.network.linear.bias
    )
    assert read.model.network.linear.bias.abs().sum() > 0
    assert "--allow-missing 'conv*' matches no missing weight" in refusal(
        tmp_path / "c.pt", allow_missing=["linear.b*", "conv*"]
    )


@pytest.mark.parametrize("pattern", ["loss.*", "module.loss.*", "*loss*"])
def test_an_unexpected_weight_can_be_allowed_and_is_recorded(ours, weights, tmp_path, pattern):
    named = {f"module.model.{name}": tensor for name, tensor in weights.items()}
    torch.save({**named, "module.loss.weight": torch.ones(10)}, tmp_path / "c.pt")
    line = refusal(tmp_path / "c.pt")
    assert "nearest is resnet18, where 1 differ (unexpected module.loss.weight (10))" in line
    assert "--allow-unexpected 'module.loss.weight' does without" in line and line.endswith("--arch or --model")
    read = load(tmp_path / "c.pt", allow_unexpected=[pattern], mean=(0.4,), std=(0.3,))
    assert torch.equal(logits(read), logits(ours))
    assert read.allowed_mismatch == {"unexpected": ["module.loss.weight"]}
    torch.save(named, tmp_path / "c.pt")
    assert "matches no unexpected weight" in refusal(tmp_path / "c.pt", allow_unexpected=[pattern])


def test_results_say_nothing_of_a_mismatch_where_none_was_allowed(ours):
    assert "allowed_mismatch" not in ours.facts()


@pytest.mark.parametrize("shown", ["\x1b[31m", "\u202e", "a\nb", "\ud800"], ids=ascii)
def test_names_cannot_write_to_a_terminal(weights, tmp_path, shown):
    torch.save({**weights, f"x{shown}": torch.ones(1)}, tmp_path / "c.pt")
    assert refusal(tmp_path / "c.pt").isprintable()


def test_only_the_chosen_network_is_read(weights, tmp_path, monkeypatch):
    read = []
    tensors = Contents.tensors
    monkeypatch.setattr(Contents, "tensors", lambda self, wanted: read.extend(wanted) or tensors(self, wanted))
    optimizer = {"state": {0: {"exp_avg": torch.ones(50)}}}
    torch.save({"model": weights, "ema": weights, "optimizer": optimizer}, tmp_path / "c.pt")
    load(tmp_path / "c.pt")
    assert sorted(read) == sorted(weights)


def test_tensors_that_share_their_memory_in_the_file_do_not_in_the_network(weights, tmp_path):
    weights = {**weights, "bn1.bias": weights["bn1.weight"]}
    torch.save(weights, tmp_path / "c.pt")
    network = load(tmp_path / "c.pt").model.network
    assert network.bn1.bias.data_ptr() != network.bn1.weight.data_ptr()
    assert all(tensor.is_contiguous() for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    ("metrics", "stage"),
    [
        ({"selected": "last epoch", "epoch": 10}, "last epoch (10)"),
        ({"selected": "x" * 50, "epoch": 3}, f"{'x' * 40} (3)"),
        ({"selected": "last epoch"}, ""),
        ({"epoch": 10}, ""),
        ({"selected": 3, "epoch": 10}, ""),
        ({"selected": "last epoch", "epoch": "10"}, ""),
    ],
)
def test_stage(metrics, stage):
    named = Checkpoint(Classifier(torch.nn.Identity()), "toy", {}, metrics=metrics)
    assert named.stage == stage and named.facts()["stage"] == (stage or None)
