"""Whatever is wrong with a command line: one line that says so, exit code 2, nothing left behind."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coprobe.checkpoint import load

#: A command line, and what its error must say.
TABLE = [
    # Checkpoint files.
    ("inspect none.pt", r"none\.pt: no such file; check the path"),
    ("inspect folder", r"folder: is a directory without a checkpoint\.pt"),
    ("inspect empty.pt", r"empty\.pt: is empty"),
    ("inspect cut.pt", r"cut\.pt: is damaged, cut short"),
    ("inspect text.pt", r"text\.pt: is no checkpoint"),
    ("inspect hostile.pt", r"hostile\.pt: holds more than weights \('\w+\.system'"),
    ("inspect nan.pt", r"nan\.pt: weight 'bn1\.weight' is not finite"),
    ("inspect odd.pt", r"odd\.pt: the weights fit no known architecture: .*resnet18"),
    ("inspect tiny.pt --arch resnet81", r"unknown architecture 'resnet81'; did you mean resnet18"),
    ("inspect tiny.pt --arch vgg16", r"no vgg16: weight 'features"),
    ("inspect tiny.pt --arch-arg width=5", r"\d+ weights don't fit resnet18 \(.* instead of .*…\)"),
    ("inspect tiny.pt --arch-arg widht=4", r"no argument 'widht'"),
    ("inspect tiny.pt --arch-arg width", r"'width': write key=value"),
    ("inspect tiny.pt --mean 0.5,0.5,0.5", r"give one number per channel"),
    ("inspect tiny.pt --std grey", r"--std grey: write numbers separated by commas"),
    ("nodes none.pt", r"none\.pt: no such file"),
    ("nodes tiny.pt --image-size 2", r"resnet18 needs at least 8 pixels"),
    ("diagnose none.pt", r"none\.pt: no such file"),
    ("mask none.pt", r"none\.pt: no such file"),
    ("evaluate tiny.pt none.pt --limit 20", r"none\.pt: no such file"),
    ("figure 4 none.pt", r"none\.pt: no such file"),
    ("mask", r"^no checkpoint named"),
    # Images.
    ("activations rgb.pt", r"rgb\.pt does not say what it was trained on; pass --data"),
    ("activations rgb.pt --data folder:small", r"16×16 pixels, but the model was trained on 32×32"),
    ("activations bare.pt --data folder:dots", r"4×4 pixels; resnet18 needs at least 8"),
    ("activations rgb.pt --data folder:two", r"has 2 classes and the model 10 logits"),
    ("activations rgb.pt --data digits", r"images of 1 channels and the model takes 3"),
    ("activations tiny.pt --data digitz", r"unknown dataset 'digitz'; did you mean digits"),
    ("activations tiny.pt --data folder:none", r"none: No such file or directory; folder:none needs DIR"),
    ("activations tiny.pt --data parquet:none", r"none: no such file or folder"),
    ("activations rgb.pt --data cifar10", r"no cifar10 in .*no route to host.*put cifar-10-batches-py there"),
    ("activations tiny.pt --limit 0", r"--limit 0: must be a whole number of at least 1, or all"),
    ("activations tiny.pt --limit -3", r"--limit -3: must be"),
    ("activations tiny.pt --limit 2.5", r"--limit 2\.5: must be"),
    # Budgets and other numbers.
    ("activations tiny.pt --eps -1", r"--eps -1: write n for n/255, a number between 0 and 255"),
    ("activations tiny.pt --eps 256", r"--eps 256: .* between 0 and 255"),
    ("activations tiny.pt --eps nan", r"--eps nan: .* between 0 and 255"),
    ("activations tiny.pt --eps 8/256", r"--eps 8/256: write n for n/255"),
    ("activations tiny.pt --eps 0.0314", r"--eps 0\.0314: budgets are n of n/255; write 8\.007 or 0\.0314/255"),
    ("activations tiny.pt --alpha nan", r"--alpha nan: must be a finite number above 0"),
    ("activations tiny.pt --batch-size 0", r"--batch-size 0: must be at least 1"),
    ("activations tiny.pt --seed -1", r"'--seed': -1 is not in the range"),
    ("activations tiny.pt --device gpu", r"--device 'gpu' is no device; use cpu"),
    ("activations tiny.pt --device cuda:99", r"--device cuda:99: this machine has no such device"),
    ("mask tiny.pt --alpha2 1.5", r"--alpha2 1\.5: must be between 0 and 1"),
    ("mask tiny.pt --alpha2 -0.1", r"--alpha2 -0\.1: must be between 0 and 1"),
    ("mask tiny.pt --alpha2 nan", r"--alpha2 nan: must be between 0 and 1"),
    ("mask tiny.pt --percent 0", r"--percent 0: must be above 0 and at most 100"),
    # Names.
    ("activations tiny.pt --limit 20 --node Z", r"unknown node 'Z'; .*A, B, C, D, E"),
    ("activations tiny.pt --limit 20 --node layer1.0.relu3", r"unknown node .*did you mean layer1\.0\.relu"),
    ("activations tiny.pt --limit 20 --attack pdg:10", r"unknown attack 'pdg'; did you mean pgd\?"),
    ("activations tiny.pt --limit 20 --attack pgd:10:restart=2", r"'restart=2' is no option of pgd; it takes"),
    ("activations tiny.pt --limit 20 --precision half", r"unknown precision 'half'; choose from 32, bf16"),
    ("activations tiny.pt --limit 20 --attack fgsm --reading R9", r"'R9' .*mean, sum, mse"),
    ("mask tiny.pt --limit 20 --attack fgsm --compare varianc", r"unknown selector 'varianc'; did you mean variance"),
    ("mask tiny.pt --compare ,", r"--compare: name at least one"),
    ("evaluate tiny.pt --limit 20 --attacks fgsm,pgdd", r"unknown attack 'pgdd'; did you mean pgd"),
    ("evaluate tiny.pt --noise gaus:8", r"unknown noise 'gaus'; choose from none, uniform, gauss|did you mean gauss"),
    ("evaluate tiny.pt --noise uniform:300", r"noise 'uniform:300': .*\(0, 255\]"),
    ("train --data digits --out new --method fgms", r"unknown training method 'fgms'; did you mean fgsm"),
    ("train --data digits --out new --arch resnet81", r"unknown architecture 'resnet81'; did you mean"),
    ("train --data digitz --out new", r"unknown dataset 'digitz'; did you mean digits"),
    ("train --data digits --out new --option a=1", r"method fgsm has no option 'a'"),
    ("train --data digits --out new --schedule steps", r"unknown schedule 'steps'; did you mean step"),
    ("train --data digits --out new --epochs 0", r"--epochs 0: must be at least 1"),
    ("train --data digits --out new --lr nan", r"--lr nan: must be a finite number"),
    ("train --data digits --out new --logit-weight nan", r"--logit-weight nan: must be a finite number"),
    ("train --data digits --out new --held-out 9999", r"there are only 1437; ask for fewer"),
    ("train --data digits --out new --stable-node Q --stable-weight 1", r"unknown node 'Q'"),
    ("train --data digits --out new --eps-train 256", r"--eps-train 256: write n for n/255"),
    ("train --data cifar10 --out new", r"no cifar10 in .*put cifar-10-batches-py there"),
    ("train --data digits --out new --batch-size 0", r"--batch-size 0: must be at least 1"),
    ("train --data digits --out new --peak 1", r"--peak 1: must be a finite number, above 0 and below 1"),
    ("train --data digits --out new --average 1", r"--average 1: must be a finite number, at least 0 and below 1"),
    ("train --data digits --out new --precision 16", r"unknown precision '16'; did you mean bf16"),
    ("train --data digits --out new --watch train", r"unknown watch 'train'; choose from held-out, test"),
    ("train --data digits --out new --noise gauss", r"unknown noise 'gauss'; choose from none, added, both"),
    ("train --data digits --out new --limit-train 0", r"--limit-train 0: must be a whole number of at least 1, or all"),
    ("train --data digits --out new --save-minutes nan", r"--save-minutes nan: must be a number above 0"),
    ("train --data digits --out new --devices 0", r"'--devices': 0 is not in the range"),
    ("train --data digits --out new --init none.pt", r"none\.pt: no such file"),
    ("train --data digits --out new --init tiny.pt", r"--init tiny\.pt: is a resnet18 .*'width': 4.*, not a resnet18"),
    ("train --data digits --out new --preset papr", r"unknown preset 'papr'; did you mean paper"),
    ("train --data digits --out new --option momentum", r"'momentum': write key=value"),
    (
        "train --data digits --out new --method free --option replays=x",
        r"method free: option replays takes a whole number, not 'x'",
    ),
    # Combinations.
    ("train --data digits --out new --co-top 10", r"--co-top needs --co-node \(B in the paper\)"),
    ("train --data digits --out new --co-by variance", r"--co-by needs --co-node \(B in the paper\)"),
    ("train --data digits --out new --co-node B", r"--co-node needs --co-top \(10 in the paper\)"),
    ("train --data digits --out new --co-node Q --co-top 10", r"unknown node 'Q'"),
    ("train --data digits --out new --stable-weight 200", r"--stable-weight needs --stable-node \(B in the paper\)"),
    ("train --data digits --out new --stable-node B", r"--stable-node needs --stable-weight \(200 in the paper\)"),
    ("train --data digits --out new --stable-detach", r"--stable-detach needs --stable-node and --stable-weight"),
    ("train --data digits --out new --milestones 3,5", r"--milestones needs --schedule step"),
    (
        "train --data digits --out new --schedule step --milestones 3,2",
        r"--milestones must rise and lie between 1 and 29",
    ),
    (
        "train --data digits --out new --schedule step --milestones soon",
        r"--milestones soon: write epochs separated by",
    ),
    (
        "train --data digits --out new --method clean --stable-node B --stable-weight 200",
        r"method clean has no attack, so --stable-node, --logit-weight and --co-node can't be used",
    ),
    ("train --data digits --out new --method free --logit-weight 1", r"method free has no attack, so .*--logit-weight"),
    (
        "train --data digits --out new --method noise --co-node B --co-top 1",
        r"method noise has no attack, so .*--co-node",
    ),
    ("train --resume --out new", r"^new: holds no run to resume; name another --out, or give a new run its knobs$"),
    (
        "train --data digits --out new --method fgsm-mep --option reset-every=0",
        "method fgsm-mep: option reset_every must",
    ),
    ("train --data digits --out new --method fgsm-mep --option reset-every=2.5", "reset_every takes a whole number"),
    (
        "train --data digits --out new --method cs-rs --option label-factor=1.5",
        "method cs-rs: option label_factor must",
    ),
    ("train --data digits --out new --compile --method gradalign", r"method gradalign needs second derivatives"),
    ("train --data digits --out new --compile --co-node B --co-top 10", r"--compile works .*without --co-node"),
    ("train --data digits --out new --tensorboard --stable-node Q --stable-weight 1", r"unknown node 'Q'"),
    # Recipe files.
    ("train --data digits --out new --recipe none.json", r"none\.json: No such file.*name a JSON file with knobs"),
    ("train --data digits --out new --recipe folder", r"folder: Is a directory.*name a JSON file"),
    ("train --data digits --out new --recipe text.pt", r"text\.pt: is no JSON \(.*name a JSON file"),
    ("train --data digits --out new --recipe tiny.pt", r"tiny\.pt: is no JSON \(.*name a JSON file"),
    ("train --data digits --out new --recipe list.json", r"list\.json: holds no knobs by name"),
    ("train --data digits --out new --recipe key.json", r"unknown key of a recipe 'epochz'; did you mean epochs"),
    ("train --data digits --out new --recipe kind.json", r"--epochs '3': must be a whole number"),
    ("methods fgms", r"unknown training method 'fgms'; did you mean fgsm"),
    ("figure 2 tiny.pt", r"unknown figure '2'; choose from 1, 3, 4"),
    ("figure 1 tiny.pt", r"figure 1 needs a run directory"),
    # Where results go.
    ("inspect tiny.pt --plot a.gif", r"a\.gif: the name must end in \.png or \.pdf or \.svg"),
    ("inspect tiny.pt --out table", r"table: the name must end in \.parquet or \.csv or \.json"),
    ("inspect tiny.pt --out folder", r"folder: is a directory; name a file"),
    ("inspect tiny.pt --out text.pt/a.csv", r"text\.pt: is not a directory; choose another output directory"),
    ("inspect tiny.pt --out dangling/a.csv", r"dangling: is not a directory"),
    ("inspect tiny.pt --plot locked/deep/a.png", r"locked.*: can't write there \(Permission denied\)"),
    ("inspect tiny.pt --plot /proc/a.png", r"/proc: can't write there"),
    ("train --data digits --out text.pt", r"text\.pt: is not a directory"),
    ("train --data digits --out locked/new", r"locked.*: can't write there"),
    ("figure 3 tiny.pt --out text.pt/figures", r"text\.pt: is not a directory"),
    ("demo --out text.pt", r"text\.pt: is not a directory"),
    # Usage.
    ("frobnicate", r"unknown command 'frobnicate'; the first of \d+ known: demo, train"),
    ("msak", r"unknown command 'msak'; did you mean mask\?"),
    ("--nope", r"No such option '?--nope"),
    ("inspect", r"Missing argument 'CHECKPOINT'"),
    ("inspect tiny.pt more.pt", r"unexpected extra argument \(more\.pt\)"),
    ("inspect tiny.pt --limit 3", r"No such option '?--limit"),
    ("train --data digits", r"Missing option '--out'"),
    ("inspect '\x1b[31m\nred'", r"^\?\[31m red: no such file"),
]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch fired",)


def write_images(root, classes, size):
    for name in range(classes):
        (root / f"c{name}").mkdir(parents=True)
        Image.fromarray(np.zeros((size, size, 3), dtype=np.uint8)).save(root / f"c{name}" / "a.png")


@pytest.fixture
def cluttered(here):
    """A working directory with everything that can be wrong in it."""
    (here / "folder").mkdir()
    (here / "empty.pt").touch()
    (here / "text.pt").write_text("no weights\n")
    (here / "list.json").write_text('["epochs", 3]')
    (here / "key.json").write_text('{"epochz": 3}')
    (here / "kind.json").write_text('{"epochs": "3"}')
    (here / "dangling").symlink_to(here / "nowhere")
    (here / "cut.pt").write_bytes((here / "tiny.pt").read_bytes()[:20000])
    weights = load(here / "tiny.pt").model.network.state_dict()
    torch.save({"state_dict": weights, "extra": Hostile()}, here / "hostile.pt")
    torch.save({**weights, "bn1.weight": weights["bn1.weight"] * float("nan")}, here / "nan.pt")
    torch.save({k: v for k, v in weights.items() if k != "linear.bias"}, here / "odd.pt")
    return here


@pytest.fixture(scope="session")
def rgb(tmp_path_factory):
    """Checkpoints of colour images, and folders of images that don't fit them."""
    from coprobe.checkpoint import Checkpoint
    from coprobe.models import Classifier, build

    root = tmp_path_factory.mktemp("rgb")
    arch_args = {"width": 2, "num_classes": 10, "in_channels": 3}
    model = Classifier(build("resnet18", **arch_args)).eval()
    Checkpoint(model, "resnet18", arch_args, image_shape=(3, 32, 32)).save(root / "rgb.pt")
    torch.save(model.network.state_dict(), root / "bare.pt")
    write_images(root / "small", 10, 16)
    write_images(root / "dots", 10, 4)
    write_images(root / "two", 2, 32)
    return root


@pytest.mark.parametrize(("line", "said"), TABLE, ids=[line for line, _ in TABLE])
def test_one_line_exit_code_2_and_nothing_left_behind(cluttered, rgb, coprobe, line, said):
    for thing in rgb.iterdir():
        (cluttered / thing.name).symlink_to(thing)
    if "locked" in line:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (cluttered / "locked").mkdir(mode=0o500)
    if "/proc" in line and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    before = sorted(cluttered.rglob("*"))
    result = coprobe(line)
    lines = [text for text in result.err.splitlines() if not text.startswith("downloading ")]
    assert (result.code, result.out, len(lines)) == (2, "", 1), result
    error = lines[0].removeprefix("coprobe: error: ")
    assert error != lines[0] and len(lines[0]) <= 300 + len("coprobe: error: ")
    assert error.isprintable() and "Traceback" not in error and "--debug" not in error
    assert re.search(said, error), error
    assert sorted(cluttered.rglob("*")) == before


def test_the_hostile_file_is_hostile(cluttered):
    torch.load(cluttered / "hostile.pt", weights_only=False)
    assert (cluttered / "fired").exists()


def test_a_directory_that_permissions_close(here, coprobe, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("coprobe.files.tempfile.TemporaryFile", refuse)
    result = coprobe("inspect tiny.pt --out results/a.csv")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "coprobe: error: results: can't write there (Permission denied); choose another output directory\n"
    )


def test_a_very_long_message_is_cut(here, coprobe):
    result = coprobe(f"inspect {'x' * 900}.pt")
    assert result.code == 2 and len(result.err) < 330 and result.err.endswith("…\n")


def test_a_name_that_is_no_text(here, coprobe):
    result = coprobe("inspect 'a\udcff.pt'")
    assert result.code == 2 and result.err == "coprobe: error: a?.pt: no such file; check the path\n"


def test_a_second_bad_checkpoint_is_found_before_the_first_attack(here, coprobe, monkeypatch):
    monkeypatch.setattr("coprobe.attacks.Attack.__call__", None)
    assert "none.pt: no such file" in coprobe("evaluate tiny.pt none.pt --limit 20").err


def test_debug_lets_the_exception_through(here, coprobe):
    from coprobe.errors import InputError

    with pytest.raises(InputError, match="no such file"):
        coprobe("inspect none.pt --debug")


def test_an_error_that_nobody_expected_is_one_line_and_exit_code_1(here, coprobe, monkeypatch):
    def fail(*args, **options):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("coprobe.checkpoint.load", fail)
    result = coprobe("inspect tiny.pt")
    assert result.code == 1
    assert result.err == (
        "coprobe: error: unexpected ZeroDivisionError: first second (pass --debug for the traceback)\n"
    )
    with pytest.raises(ZeroDivisionError):
        coprobe("inspect tiny.pt --debug")


def test_an_interruption_is_exit_code_130(here, coprobe, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("coprobe.checkpoint.load", interrupt)
    result = coprobe("inspect tiny.pt")
    assert (result.code, result.err.strip()) == (130, "coprobe: error: interrupted")
