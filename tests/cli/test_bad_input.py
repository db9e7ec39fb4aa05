"""What can go wrong, and what coprobe says of it: one line with what is wrong, where, and the remedy.

Exit codes: 2 bad usage or input, 1 a failure, 130 (Ctrl-C) or 128 + signal interrupted, 0 a warning beside a result.
The files that are named, from `none.pt` on, are made in `clutter.py`, and what happens around a command (full disks,
signals) in `faults.py`.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coprobe.errors import InputError
from tests.cli import clutter
from tests.cli.faults import Fault, held, inside, present, raising, removed, signalled, unreadable, unwritable, without
from tests.paper.tiny import TINY, InlineEngine


@dataclass(frozen=True)
class Row:
    """What somebody does, what is wrong, and how it ends.

    Args:
        command: the command line, without `coprobe`.
        wrong: in a few words.
        message: exactly what stands on stderr after "coprobe: error: "; {n} is a number that depends on how torch
            writes files, {said} what another library says.
        code: the exit code.
        fault: what happens around the command.
        leaves: the files and empty directories that are there afterwards and were not before.
        prints: whether there is a result on stdout nevertheless.
    """

    command: str
    wrong: str
    message: str
    code: int = 2
    fault: Fault = nullcontext
    leaves: str = ""
    prints: bool = False

    def __str__(self) -> str:
        return f"{self.command[:80]} ({self.wrong})"


def after(start: str, *rows: Row) -> list[Row]:
    """Rows whose commands all begin with `start`."""
    return [replace(row, command=f"{start} {row.command}") for row in rows]


def each(wrong: str, message: str, *commands: str, **how: Any) -> list[Row]:
    """A row for each of several commands that say the same."""
    return [Row(command, wrong, message, **how) for command in commands]


#: What the faults befall, and what they are.
GRADIENT = "coprobe.attacks.gradient.GradientAttack._gradient"
UPDATE = "coprobe.training.loop.TrainingLoop.update"
TEMPORARY_FILE = "coprobe.core.files.tempfile.TemporaryFile"
FULL_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
NOT_ALLOWED = PermissionError(errno.EACCES, "Permission denied")
#: What the first of the paper's jobs leaves.
A_RUN = "new/mep-12/best.pt new/mep-12/checkpoint.pt new/mep-12/history.csv new/mep-12/recipe.json new/scale.json"

# fmt: off
TABLE = [
    # Checkpoints: no such file, or no file.
    *each("no such file",
        "none.pt: no such file; check the path",
        "inspect none.pt", "check none.pt", "nodes none.pt", "activations none.pt", "mask none.pt",
        "increments none.pt", "diagnose none.pt", "evaluate tiny.pt none.pt --limit 20",
        "transfer tiny.pt none.pt --limit 20", "transfer none.pt tiny.pt", "figure 4 none.pt",
        "train --data digits --out new --init none.pt"),
    Row("mask", "no checkpoint named, and none probed before",
        "no checkpoint named, none probed from here before, no run below this directory; name one",
        fault=inside("folder")),
    Row("inspect folder", "a directory", "folder: is a directory without a checkpoint.pt; name a checkpoint file"),
    Row("inspect sharded", "a DCP folder, of a training with shards",
        "sharded: is a folder of torch.distributed.checkpoint, whose index can run code; convert it with "
        "dcp_to_torch_save where it is trusted"),
    Row("inspect loop.pt", "a link to itself", "loop.pt: Too many levels of symbolic links; check the path"),
    Row("inspect dangling", "a link to nothing", "dangling: no such file; check the path"),
    Row("inspect pipe.pt", "a pipe, which would block", "pipe.pt: is no regular file; name a checkpoint file"),
    Row("inspect tiny.pt", "no permission",
        "tiny.pt: no permission to read it; ask its owner for it, or name another", fault=unreadable("tiny.pt")),
    Row("inspect '\x1b[31m\nred'", "control characters in the name", "\\x1b[31m\\nred: no such file; check the path"),
    Row("inspect 'a\udcff.pt'", "a name that is no text", "a\\udcff.pt: no such file; check the path"),
    # Checkpoints: files of another kind.
    Row("inspect empty.pt", "nothing", "empty.pt: is empty; copy or download it again"),
    Row("inspect text.pt", "text",
        "text.pt: is a text file, no checkpoint; name the file that torch.save or safetensors wrote"),
    Row("inspect page.pt", "a web page", "page.pt: is a web page, not a checkpoint; download the file itself"),
    Row("inspect pointer.pt", "a Git LFS pointer",
        "pointer.pt: is a Git LFS pointer, not the file itself; run 'git lfs pull'"),
    Row("inspect zeros.pt", "zeros",
        "zeros.pt: holds nothing but zeros (a disk that lost power?); copy or download it again"),
    Row("inspect noise.pt", "random bytes",
        "noise.pt: is no checkpoint (neither a torch nor a safetensors file); save model.state_dict() with torch.save"),
    Row("inspect picture.png", "a picture", "picture.png: is a PNG image; name a checkpoint file"),
    Row("inspect array.npy", "a numpy array", "array.npy: is a numpy array; save model.state_dict() with torch.save"),
    Row("inspect arrays.npz", "several numpy arrays",
        "arrays.npz: is a numpy archive (.npz); save model.state_dict() with torch.save"),
    Row("inspect packed.pt", "packed by gzip", "packed.pt: is packed by gzip; unpack it and name the checkpoint in it"),
    Row("inspect bundle.pt", "a tar archive",
        "bundle.pt: is a tar archive; unpack it and name the checkpoint in it, or save model.state_dict() with "
        "torch.save if torch wrote it before version 0.2"),
    Row("inspect sevenzip.pt", "a 7z archive", "sevenzip.pt: is a 7z archive; unpack it and name the checkpoint in it"),
    Row("inspect photos.zip", "another zip archive",
        "photos.zip: is an archive, but no torch checkpoint (it has no data.pkl); unpack it and name the checkpoint in "
        "it, or save model.state_dict() with torch.save"),
    Row("inspect script.pt", "TorchScript",
        "script.pt: is a TorchScript archive, which holds a program; save model.state_dict() with torch.save"),
    Row("inspect exported.pt2", "torch.export",
        "exported.pt2: is a torch.export archive, which holds a program; save model.state_dict() with torch.save"),
    # Checkpoints: damage.
    Row("inspect begun.pt", "cut short after 3 bytes",
        "begun.pt: is no checkpoint (neither a torch nor a safetensors file); save model.state_dict() with torch.save"),
    Row("inspect cut.pt", "cut in half",
        "cut.pt: is an archive cut short, or still being written (no end in its {n} bytes); copy it again"),
    Row("inspect cut-last.pt", "the last byte is lacking",
        "cut-last.pt: is an archive cut short, or still being written (no end in its {n} bytes); copy it again"),
    Row("inspect flipped.pt", "a single bit differs",
        "flipped.pt: is damaged: 'archive/data/{n}' in it doesn't match its checksum; copy or download it again"),
    Row("inspect deflated.pt", "packed again, with compression",
        "deflated.pt: is an archive with the compressed member 'archive/data.pkl', unlike torch's; save "
        "model.state_dict() with torch.save"),
    Row("inspect cut.safetensors", "cut short",
        "cut.safetensors: is cut short: its header ends at byte 1,000,008, and it has {n}; copy or download it again"),
    Row("inspect lying.safetensors", "a header that contradicts the file",
        "lying.safetensors: is a damaged or forged safetensors file ({said}); copy or download it again"),
    # Checkpoints: what is in them.
    Row("inspect settings.pt", "no weights",
        "settings.pt: holds no network (it holds 'epoch', 'lr'); save model.state_dict()"),
    Row("inspect list.pt", "weights without names",
        "list.pt: holds no network (it is a list); save model.state_dict()"),
    Row("inspect single.pt", "one tensor",
        "single.pt: holds no network (it is one tensor, 2×1×3×3); save model.state_dict()"),
    Row("inspect numbered.pt", "numbers for names",
        "numbered.pt: holds no network (it holds 0, 1, 2, 3, 4); save model.state_dict()"),
    Row("inspect newer.pt", "written by a newer coprobe",
        "newer.pt: has the format coprobe/99 of a newer coprobe; upgrade coprobe"),
    Row("inspect foreign.pt", "an unknown network",
        "foreign.pt: the 2 weights fit no known architecture (conv.weight 2×3×5×5, fc.weight 3×7); name it with --arch "
        "or --model"),
    Row("inspect missing.pt", "a weight is missing",
        "missing.pt: the weights fit no known architecture: nearest is resnet18, where 1 differ (missing linear.bias "
        "(10)); --allow-missing 'linear.bias' does without, or name it with --arch or --model"),
    Row("inspect unexpected.pt", "a weight too many",
        "unexpected.pt: the weights fit no known architecture: nearest is resnet18, where 1 differ (unexpected "
        "rotation.weight (4×2)); --allow-unexpected 'rotation.weight' does without, or name it with --arch or --model"),
    Row("inspect misshapen.pt", "a weight of another shape",
        "misshapen.pt: the weights fit no known architecture: nearest is resnet18, where 1 differ (linear.bias is 11 "
        "instead of 10); name it with --arch or --model"),
    Row("inspect complex.pt", "complex weights",
        "complex.pt: weight 'conv1.weight' is no plain tensor of real numbers (complex64); save a float state_dict"),
    Row("inspect sparse.pt", "a sparse weight",
        "sparse.pt: weight 'linear.weight' is no plain tensor: it is sparse; save a dense state_dict"),
    Row("inspect aliased.pt", "two values for one weight",
        "aliased.pt: holds two networks, told apart by 'module.conv1.weight'; save the state_dict of one"),
    Row("inspect two.pt", "two networks", "two.pt: holds 2 networks (last, best); choose one, as in --pick last"),
    Row("inspect nan.pt", "weights that are NaN",
        "nan.pt: weight 'bn1.weight' is not finite (NaN or infinite); the training diverged, so take an earlier "
        "checkpoint"),
    Row("inspect infinite.pt", "weights that are infinite",
        "infinite.pt: weight 'conv1.weight' is not finite (NaN or infinite); the training diverged, so take an earlier "
        "checkpoint"),
    Row("nodes tiny.pt --pick best", "a network that is not in the file",
        "tiny.pt: unknown network in the file 'best'; choose from state_dict"),
    Row("inspect two.pt --pick newest", "a network that is not in the file",
        "two.pt: unknown network in the file 'newest'; did you mean best?"),
    Row("inspect tiny.pt --allow-missing 'linear.*'", "a pattern that allows nothing",
        "tiny.pt: --allow-missing 'linear.*' matches no missing weight; leave it out"),
    Row("inspect unexpected.pt --allow-unexpected 'fc2.*'", "a pattern that allows something else",
        "unexpected.pt: the weights fit no known architecture: nearest is resnet18, where 1 differ (unexpected "
        "rotation.weight (4×2)); --allow-unexpected 'rotation.weight' does without, or name it with --arch or --model"),
    *each("weights that are NaN",
        "nan.pt: weight 'bn1.weight' is not finite (NaN or infinite); the training diverged, so take an earlier "
        "checkpoint",
        "evaluate nan.pt --data digits --limit 20", "train --data digits --out new --init nan.pt"),
    # Architectures.
    Row("inspect tiny.pt --arch resnet81", "unknown name",
        "unknown architecture 'resnet81'; did you mean resnet18 or resnet110 or resnet56?"),
    Row("inspect tiny.pt --arch vgg16", "another network's name",
        "tiny.pt: 202 weights don't fit vgg16 (missing features.0.weight (64×3×3×3), missing features.0.bias (64), "
        "missing features.1.weight (64), …); name another --arch or its --arch-arg; "
        "'coprobe inspect --weights' lists all"),
    Row("inspect tiny.pt --arch-arg width=5", "another width",
        "tiny.pt: 101 weights don't fit resnet18 (conv1.weight is 2×1×3×3 instead of 5×1×3×3, bn1.weight is 2 instead "
        "of 5, bn1.bias is 2 instead of 5, …); name another --arch or its --arch-arg; "
        "'coprobe inspect --weights' lists all"),
    Row("inspect tiny.pt --arch-arg widht=4", "unknown argument",
        "tiny.pt: resnet18 has no argument 'widht'; it takes (with defaults) width=64, num_classes=10, in_channels=3, "
        "stem='plain', activation='relu'"),
    Row("inspect tiny.pt --arch-arg width", "no value", "'width': write key=value"),
    Row("inspect tiny.pt --arch-arg width=wide", "a word for a number",
        "tiny.pt: width='wide' is not a positive int; resnet18 takes (with defaults) width=64, num_classes=10, "
        "in_channels=3, stem='plain', activation='relu'"),
    Row("inspect tiny.pt --mean 0.5,0.5,0.5", "three numbers for one channel",
        "tiny.pt: mean has 3 and std 3 channels where the images have 1; give one number per channel"),
    Row("inspect tiny.pt --std grey", "a word for a number",
        "--std grey: write numbers separated by commas, one per channel"),
    Row("inspect tiny.pt --std 0", "a division by zero",
        "tiny.pt: std (0.0,) is not positive and finite; give 1 for a channel that is not to be scaled"),
    Row("inspect tiny.pt --arch keras:resnet18", "unknown source",
        "unknown source of networks 'keras'; choose from torchvision, timm, robustbench"),
    Row("inspect tiny.pt --arch torchvision:resnet81", "unknown name",
        "unknown torchvision classifier 'resnet81'; did you mean resnet18 or resnet152 or resnet101?"),
    Row("inspect tiny.pt --arch timm:resnet18", "timm is not installed",
        "timm is not installed; pip install 'coprobe[zoo]'", fault=without("timm")),
    Row("inspect tiny.pt --arch robustbench:Wong2020Fast", "robustbench is not installed",
        "robustbench is not installed; pip install 'coprobe[zoo]'", fault=without("robustbench")),
    # Networks of one's own.
    *each("no network named",
        "'-' stands for the weights that --model comes with; pass --model, or name a checkpoint file",
        "inspect -", "inspect - --arch resnet18", "evaluate - --data digits"),
    Row("inspect - --model nets.py:good --pick best", "a choice within no file",
        "'-' is no file; leave out --pick, --allow-missing and --allow-unexpected"),
    *each("two networks named",
        "--model nets.py:good makes the network; leave out --arch, and use --model-arg for arguments",
        "inspect - --model nets.py:good --arch resnet18", "inspect tiny.pt --model nets.py:good --arch resnet18"),
    Row("inspect tiny.pt --model nets.py:good", "weights of another network",
        "tiny.pt: 126 weights don't fit nets.py:good (missing features.weight (4×1×3×3), missing features.bias (4), "
        "missing head.weight (10×64), …); name another --model or its --model-arg; "
        "'coprobe inspect --weights' lists all"),
    Row("inspect tiny.pt --model-arg width=3", "an argument for nothing",
        "--model-arg without --model; name the factory that takes it"),
    Row("inspect - --model nets.py", "no factory named",
        "'nets.py' names no factory; write pkg.module:factory or path/to/file.py:factory"),
    Row("inspect - --model nets.py:goood", "unknown factory", "unknown factory of nets.py 'goood'; did you mean good?"),
    Row("inspect - --model none.py:net", "no such file", "none.py: no such file; write path/to/file.py:factory"),
    Row("inspect - --model no.such:net", "no such module",
        "no module 'no' here or installed; write pkg.module:factory or path/to/file.py:factory"),
    Row("inspect - --model broken.py:net", "a file with a syntax error",
        "broken.py fails (SyntaxError: {said}); mend it, or see the traceback with --debug"),
    Row("inspect - --model nets.py:falls_over", "a factory that raises",
        "nets.py:falls_over fails (KeyError: 'backbone'); mend it, or see the traceback with --debug"),
    Row("inspect - --model nets.py:words", "a factory of something else",
        "nets.py:words gives a str, not a torch.nn.Module; name what returns a network"),
    Row("inspect - --model nets.py:needs", "a lacking argument",
        "nets.py:needs: missing a required argument: 'width'; it takes width"),
    Row("inspect - --model nets.py:good --model-arg width=3", "an argument that it doesn't take",
        "nets.py:good: got an unexpected keyword argument 'width'; it takes no arguments"),
    Row("inspect - --model nets.py:pair", "a network that returns a tuple",
        "the network gives a tuple instead of a tensor of logits; give one that returns logits only"),
    Row("inspect - --model nets.py:feature_map", "a network that returns no logits",
        "the network gives no logits for one image of 1×32×32, 1×28×28, 1×64×64, 1×224×224, 1×299×299, 3×32×32, … "
        "(1×10×1×1 of torch.float32, not 1×classes); give one that turns images N×C×H×W into logits"),
    Row("nodes - --model nets.py:pair", "a network that returns a tuple",
        "the network gives a tuple instead of a tensor of logits; give one that returns logits only"),
    Row("inspect - --model nets.py:lazy", "a network without shapes yet",
        "the network has lazy weights without a shape; call it on an image once before giving it"),
    Row("activations - --model nets.py:linear --data digits --limit 20", "a network without activation functions",
        "no activation function is seen in this network (in scripted code none can be), so it has no nodes A…E; --node "
        "takes module paths"),
    Row("activations - --model nets.py:shy --data digits --limit 20", "a network that notices when it is watched",
        "recording at A changes the logits of this model, so nothing seen there can be trusted; name other nodes",
        code=1),
    # Numeric faults.
    Row("inspect - --model nets.py:nan_weights", "weights that are NaN",
        "nets.py:nan_weights: weight 'head.weight' is not finite (NaN or infinite); mend the factory"),
    *each("logits that are NaN for some images",
        "FGSM: the model's logits or gradients are not finite (NaN or infinite); check its weights and --mean/--std",
        "evaluate - --model nets.py:nan_for_bright --data digits --limit 20 --eps 16",
        "diagnose - --model nets.py:nan_for_bright --data digits --limit 20 --eps 16", code=1),
    Row("activations - --model nets.py:nan_for_bright --data digits --limit 20", "logits that are NaN for some images",
        "PGD-10 (rule=always): the model's logits or gradients are not finite (NaN or infinite); check its weights and "
        "--mean/--std", code=1),
    Row("increments - --model nets.py:nan_for_bright --data digits --limit 20", "logits that are NaN for some images",
        "activations are not finite (NaN or infinite), so the increments are undefined; check the weights and "
        "--mean/--std", code=1),
    Row("mask - --model nets.py:nan_for_bright --data digits --limit 20", "logits that are NaN for some images",
        "PGD-10 (rule=always): the model's logits or gradients are not finite (NaN or infinite); check its weights and "
        "--mean/--std", code=1),
    Row("evaluate - --model nets.py:nan_for_all --data digits --limit 20 --attacks fgsm", "logits that are NaN",
        "FGSM: the model's logits or gradients are not finite (NaN or infinite); check its weights and --mean/--std",
        code=1),
    Row("evaluate - --model nets.py:nan_gradients --data digits --limit 20 --attacks fgsm", "gradients that are NaN",
        "FGSM: the model's logits or gradients are not finite (NaN or infinite); check its weights and --mean/--std",
        code=1),
    Row("train --recipe small.json --out new --lr 1e12 --limit-train 64", "a training that diverges",
        "training diverged in epoch 1 (its losses or weights are not finite); no checkpoint was written; lower --lr",
        code=1, leaves="new/recipe.json"),
    Row("train --recipe small.json --out new --lr 1e30", "a training whose last update diverges",
        "epoch 1 can't be measured: FGSM: the model's logits or gradients are not finite (NaN or infinite); no "
        "checkpoint was written; lower --lr", code=1, leaves="new/recipe.json"),
    Row("evaluate - --model nets.py:three_classes --data digits --limit 20", "labels that exceed the classes",
        "digits (test) has 10 classes and the model 3 logits; choose the --data it was trained on"),
    Row("inspect - --model nets.py:three_classes --data digits", "labels that exceed the classes",
        "digits (test) has 10 classes and the model 3 logits; choose the --data it was trained on"),
    *each("constant logits",
        "-: the logits are the same for all images, so no attack finds a direction; check the weights and --mean/--std",
        "evaluate - --model nets.py:constant --data digits --limit 20 --attacks fgsm",
        "diagnose - --model nets.py:constant --data digits --limit 20 --attack fgsm", code=0, prints=True),
    *each("probabilities instead of logits",
        "-: the outputs are probabilities, and attacks on them see hardly any gradient; leave out the softmax at the "
        "end",
        "evaluate - --model nets.py:probabilities --data digits --limit 20 --attacks fgsm",
        "diagnose - --model nets.py:probabilities --data digits --limit 20 --attack fgsm", code=0, prints=True),
    # Images.
    Row("activations rgb.pt", "no data set named",
        "rgb.pt does not say what it was trained on; pass --data (cifar10, parquet:DIR, …)"),
    *after("activations rgb.pt --data",
        Row("digitz", "unknown name", "unknown dataset 'digitz'; did you mean digits?"),
        Row("digits:x", "a path for a data set that has none",
            "dataset 'digits' takes no path, but 'digits:x' was given; write digits"),
        Row("folder", "no path", "dataset 'folder' needs a path; write folder:DIR"),
        Row("folder:none", "no such folder",
            "none: No such file or directory; folder:none needs DIR/train/CLASS/ or DIR/CLASS/"),
        Row("folder:tiny.pt", "a file for a folder",
            "tiny.pt: Not a directory; folder:tiny.pt needs DIR/train/CLASS/ or DIR/CLASS/"),
        Row("folder:loose", "images without class folders",
            "loose: holds image files but no class folders; put the images of each class into a folder of its own"),
        Row("folder:hollow", "class folders without images",
            "hollow: holds no images; files that end in .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp are "
            "read"),
        Row("folder:strangers", "a class of the test images alone",
            "strangers/test: class folder 'c2' does not exist in strangers/train; add or remove it"),
        Row("folder:one", "one class only",
            "folder:one (test) has 1 classes and the model 10 logits; choose the --data it was trained on"),
        Row("folder:two", "other classes than the model's",
            "folder:two (test) has 2 classes and the model 10 logits; choose the --data it was trained on"),
        Row("folder:mixed", "images of two sizes",
            "mixed/c9/a.png: 16×16 pixels, but mixed/c0/a.png has 32×32; all images of a data set must have one size: "
            "commands that probe resize and crop them with --image-size N"),
        Row("folder:torn", "a truncated image",
            "torn/c9/b.jpg: damaged image ({said}); replace or remove it, or pass --skip-bad"),
        Row("folder:page", "a web page named .jpg",
            "page/c9/a.jpg: not an image (JPEG, PNG, WEBP, BMP, TIFF, PPM); replace or remove it, or pass --skip-bad"),
        Row("folder:huge", "an image of 60000×60000 pixels",
            "huge/c9/a.png: more than 16777216 pixels; make it smaller, or pass --skip-bad"),
        Row("folder:all-torn --skip-bad", "no image that can be read",
            "folder:all-torn (test): all 10 images are bad (a.jpg: damaged image ({said})); replace them"),
        Row("parquet:none", "no such file", "none: no such file or folder; name a folder of Parquet files"),
        Row("parquet:folder", "an empty folder",
            "folder: no test*.parquet or val*.parquet for the test split; it holds no Parquet file at all"),
        Row("parquet:text.pt", "text", "text.pt: not a whole Parquet file ({said}); download it again"),
        Row("parquet:cut.parquet", "cut short", "cut.parquet: not a whole Parquet file ({said}); download it again"),
        Row("parquet:column.parquet", "no column of images",
            "column.parquet: has the columns photo, label; an image column (img or image) and a label column (label or "
            "fine_label or labels) are needed"),
        Row("parquet:paths.parquet", "paths instead of images",
            "paths.parquet: column 'image' is string; a struct with binary 'bytes' is needed"),
        Row("parquet:words.parquet", "words for labels",
            "words.parquet: column 'label' is string; integers are needed"),
        Row("parquet:unlabelled.parquet", "a label is lacking", "unlabelled.parquet: row 9 has no label; remove it"),
        Row("parquet:many.parquet", "a label of ten millions",
            "many.parquet: row 9 has label 10000000; more than 100000 classes are not supported"),
        Row("parquet:eleven.parquet", "a label that exceeds the classes",
            "parquet:eleven.parquet (test) has 11 classes and the model 10 logits; choose the --data it was trained "
            "on"),
        Row("cifar10", "no data and no network",
            "no cifar10 in data-sets and it could not be downloaded (no route to host); put cifar-10-batches-py there, "
            "or name a folder with --data parquet:DIR or folder:DIR"),
        Row("cifar100", "something else in its place",
            "data-sets/cifar-100-python: incomplete, or not the published files (their checksums differ); delete it "
            "and it will be downloaded again"),
        Row("svhn", "something else in its place",
            "data-sets/test_32x32.mat: not the published file (its checksum differs); delete it and it will be "
            "downloaded again"),
        Row("tiny-imagenet", "something else in its place",
            "data-sets/tiny-imagenet-200: not the published layout ([Errno 2] No such file or directory: "
            "'data-sets/tiny-imagenet-200/train'); delete it and it will be downloaded again"),
        Row("parquet:negative.parquet", "a label below 0",
            "parquet:negative.parquet (test): row 9 has label -1; with 9 classes labels go from 0 to 8; mend or remove "
            "the row"),
        Row("parquet:none.parquet", "no rows", "parquet:none.parquet (test): holds no images; name another"),
        Row("folder:small", "another size than the model's",
            "folder:small (test) has images of 16×16 pixels, but the model was trained on 32×32; choose the --data it "
            "was trained on, or bring them to that size with --image-size 32x32"),
        Row("folder:mixed --image-size 32,32", "a size in other words",
            "--image-size 32,32: write N, HxW or N:SHORTER, as in 32, 32x64 or 224:256"),
    ),
    Row("activations bare.pt --data folder:dots", "images smaller than the network can take",
        "folder:dots (test) has images of 4×4 pixels; resnet18 needs at least 8; choose the --data it was trained on"),
    Row("activations rgb.pt --data digits", "grey images for a model of colours",
        "digits (test) has images of 1 channels and the model takes 3; choose the --data it was trained on"),
    Row("evaluate rgb.pt --data folder:torn --limit all --attacks fgsm --skip-bad", "a truncated image, left out",
        "folder:torn (test): left out 1 bad image: 'c9/b.jpg'", code=0, prints=True),
    *each("a truncated image",
        "torn/c9/b.jpg: damaged image ({said}); replace or remove it, or pass --skip-bad",
        "inspect rgb.pt --data folder:torn", "evaluate rgb.pt --data folder:torn --limit all",
        "train --data folder:torn --out new --held-out 1"),
    Row("train --data digitz --out new", "unknown name", "unknown dataset 'digitz'; did you mean digits?"),
    Row("train --data cifar10 --out new", "no data and no network",
        "no cifar10 in data-sets and it could not be downloaded (no route to host); put cifar-10-batches-py there, or "
        "name a folder with --data parquet:DIR or folder:DIR"),
    Row("activations tiny.pt --limit 0", "no images", "--limit 0: must be a whole number of at least 1, or all"),
    Row("activations tiny.pt --limit -3", "fewer than no images",
        "--limit -3: must be a whole number of at least 1, or all"),
    Row("activations tiny.pt --limit 2.5", "half an image",
        "--limit 2.5: must be a whole number of at least 1, or all"),
    Row("activations tiny.pt --split val", "unknown split",
        "Invalid value for '--split': 'val' is not one of 'test', 'train'; see 'coprobe activations --help'"),
    # Budgets and other numbers.
    *after("activations tiny.pt",
        Row("--eps -1", "negative", "--eps -1: write n for n/255, a number between 0 and 255"),
        Row("--eps 256", "too large", "--eps 256: write n for n/255, a number between 0 and 255"),
        Row("--eps nan", "no number", "--eps nan: write n for n/255, a number between 0 and 255"),
        Row("--eps 8/256", "another denominator", "--eps 8/256: write n for n/255, a number between 0 and 255"),
        Row("--eps 0.0314", "a fraction, as other tools take it",
            "--eps 0.0314: budgets are n of n/255; write 8.007 or 0.0314/255"),
        Row("--alpha nan", "no number",
            "Invalid value for '--alpha': nan is not a number; see 'coprobe activations --help'"),
        Row("--alpha inf", "without end",
            "Invalid value for '--alpha': inf is not in the range 0<x<inf; see 'coprobe activations --help'"),
        Row("--batch-size 0", "no images at once",
            "Invalid value for '--batch-size': 0 is not in the range x>=1; see 'coprobe activations --help'"),
        Row("--seed -1", "negative",
            "Invalid value for '--seed': -1 is not in the range x>=0; see 'coprobe activations --help'"),
        Row("--top 0", "no channels",
            "Invalid value for '--top': 0 is not in the range x>=1; see 'coprobe activations --help'"),
        Row("--device gpu", "unknown device", "--device 'gpu' is no device; use cpu, cuda, cuda:1 or mps"),
        Row("--device cuda:99", "a device that this machine has not",
            "--device cuda:99: this machine has no such device; use --device cpu"),
        Row("--precision half", "unknown precision", "unknown precision 'half'; choose from 32, tf32, bf16"),
        Row("--precision tf32 --device cpu", "a precision that this device has not",
            "--precision tf32: only CUDA GPUs have it; use 32 or bf16"),
    ),
    Row("mask tiny.pt --plain --compile", "two that contradict each other",
        "--plain switches --compile off; leave one of them out"),
    Row("activations tiny.pt --devices 0", "no device",
        "Invalid value for '--devices': 0 is not in the range x>=1; see 'coprobe activations --help'"),
    Row("evaluate tiny.pt --limit 20 --device mps --devices 2", "a device that cannot share work",
        "--devices 2: work is shared on cuda and cpu only, not on mps", fault=present("mps")),
    Row("evaluate tiny.pt --limit 20 --device cuda --devices 9", "more devices than there are",
        "--devices 9: this machine has 2 GPUs", fault=present("cuda")),
    Row("evaluate tiny.pt --limit 20 --device cuda:1 --devices 2", "one device and several",
        "--device cuda:1: --devices 2 takes the first 2; write --device cuda", fault=present("cuda")),
    Row("mask tiny.pt --alpha2 1.5", "too large",
        "Invalid value for '--alpha2': 1.5 is not in the range 0<=x<=1; see 'coprobe mask --help'"),
    Row("mask tiny.pt --alpha2 -0.1", "negative",
        "Invalid value for '--alpha2': -0.1 is not in the range 0<=x<=1; see 'coprobe mask --help'"),
    Row("mask tiny.pt --alpha2 nan", "no number",
        "Invalid value for '--alpha2': nan is not a number; see 'coprobe mask --help'"),
    Row("mask tiny.pt --percent 0", "no channels",
        "Invalid value for '--percent': 0.0 is not in the range 0<x<=100; see 'coprobe mask --help'"),
    Row("mask tiny.pt --compare ,", "an empty list", "--compare: name at least one, separated by commas"),
    Row("nodes tiny.pt --image-size 2", "images smaller than the network can take",
        "--image-size 2: resnet18 needs at least 8 pixels"),
    # Nodes, attacks and other names.
    Row("activations tiny.pt --limit 20 --node Z", "unknown letter",
        "unknown node 'Z'; the first of 83 known: A, B, C, D, E, conv1, bn1, relu, …"),
    Row("activations tiny.pt --limit 20 --node layer1.0.relu3", "unknown module",
        "unknown node 'layer1.0.relu3'; did you mean layer1.0.relu2 or layer1.0.relu1 or layer4.0.relu2?"),
    Row("activations tiny.pt --limit 20 --node A:99", "a channel that is not there",
        "node 'A' has channels 0 to 1, not 99"),
    Row("activations tiny.pt --limit 20 --node A:x", "neither a side nor a channel",
        "node 'A:x': 'x' is neither a side of a module nor a channel; write A, A:in or A:12"),
    Row("activations tiny.pt --limit 20 --node layer1.0#relu9", "a call that is not made",
        "node 'layer1.0#relu9': no pass comes by it; 'coprobe nodes' lists places that it does"),
    Row("activations tiny.pt --limit 20 --node layer1.0#swish1", "a call of no activation function",
        "node 'layer1.0#swish1': 'swish1' is no call of an activation function; write relu1 for the first ReLU, or "
        "what 'coprobe nodes' lists"),
    Row("activations - --model nets.py:Tied --data digits --limit 20 --node relu", "an axis that can't be told",
        "node 'relu': can't tell which axis of its activations (batch×4×4×4) holds the channels; say --channel-axis "
        "relu=AXIS, in Python wrap(…, channel_axis=AXIS)"),
    *each("a row that is no image's",
        "node 'relu': the first axis of its activations is not the images (rows: 2 for one image, 4 for three); name "
        "another node", *(f"{command} - --model nets.py:OneMore --data digits --limit 20 --node relu"
        for command in ("activations", "mask", "diagnose", "increments"))),
    Row("activations tiny.pt --limit 20 --node A --channel-axis 4", "an axis that is not there",
        "node 'A': axis 4 of its activations (batch×2×32×32) can't hold the channels; give 1 to 3"),
    Row("nodes tiny.pt --channel-axis 0", "the axis of the images",
        "channel axis 0: write a whole number, not 0, which is the axis of the images"),
    Row("nodes tiny.pt --channel-axis last", "a word for an axis",
        "--channel-axis last: write NODE=AXIS for each node, or one AXIS for all, as in A=3 or 3"),
    Row("nodes tiny.pt --channel-axis A=1 --channel-axis 2", "one axis for all, beside another",
        "--channel-axis 2: write NODE=AXIS for each node, or one AXIS for all, as in A=3 or 3"),
    Row("nodes tiny.pt --channel-axis relu9=1", "an axis of an unknown node",
        "unknown node 'relu9'; did you mean relu?"),
    Row("measure tiny.pt gradient --limit 20", "unknown metric",
        "unknown metric 'gradient'; did you mean gradient-alignment?"),
    Row("activations tiny.pt --limit 20 --attack pdg:10", "unknown attack", "unknown attack 'pdg'; did you mean pgd?"),
    Row("activations tiny.pt --limit 20 --attack pgd:10:restart=2", "unknown option of an attack",
        "attack 'pgd:10:restart=2': 'restart=2' is no option of pgd; it takes start, rule, iterations, step-size, "
        "restarts, target"),
    Row("check tiny.pt --limit 20 --attacks pdg", "unknown attack", "unknown attack 'pdg'; did you mean pgd?"),
    *after("evaluate tiny.pt --limit 20 --norm l2",
        Row("--eps -1", "negative",
            "--eps -1: write an L2 length of images in [0, 1], as in 0.5 or 128/255"),
        Row("--eps inf", "no number",
            "--eps inf: write an L2 length of images in [0, 1], as in 0.5 or 128/255"),
        Row("--eps 1/256", "another denominator",
            "--eps 1/256: write an L2 length of images in [0, 1], as in 0.5 or 128/255"),
        Row("--attacks pgd:step-size=0", "no step", "pgd: step-size 0: must be above 0"),
        Row("--attacks pgd:target=all", "no target",
            "pgd: target 'all' is none of none, next, random, or the number of a class"),
        Row("--attacks pgd:target=12", "no class", "pgd: target 12: the model has classes 0 to 9")),
    Row("activations tiny.pt --limit 20 --attack pgd:0", "no steps", "pgd: iterations 0: must be at least 1"),
    Row("activations tiny.pt --limit 20 --attack pgd:10:restarts=x", "a word for a number",
        "attack 'pgd:10:restarts=x': restarts takes a whole number, not 'x'"),
    Row("activations tiny.pt --limit 20 --attack fgsm --reading R9", "unknown reading",
        "reading 'R9' of Eq. 6 is unknown; choose from mean, sum, mse"),
    Row("increments tiny.pt --limit 20 --attack aa", "an attack without steps",
        "attack 'aa' does not hand out its steps; choose from fgsm, pgd, cw, pgd-eot, mi-fgsm"),
    Row("increments tiny.pt --limit 20 --node Z", "unknown letter",
        "unknown node 'Z'; the first of 83 known: A, B, C, D, E, conv1, bn1, relu, …"),
    Row("increments tiny.pt --limit 20 --attack pdg", "unknown attack", "unknown attack 'pdg'; did you mean pgd?"),
    Row("mask tiny.pt --limit 20 --node Q", "unknown letter",
        "unknown node 'Q'; the first of 83 known: A, B, C, D, E, conv1, bn1, relu, …"),
    Row("mask tiny.pt --limit 20 --node A:1 --alpha2 0.5", "a channel and a threshold",
        "node 'A:1' is the channel to mask; leave out --alpha2 and --percent"),
    Row("mask tiny.pt --limit 20 --attack fgsm --compare varianc", "unknown selector",
        "unknown selector 'varianc'; did you mean variance or variance-clean?"),
    *each("unknown attack",
        "unknown attack 'pgdd'; did you mean pgd or apgd-t or pgd-eot?",
        "evaluate tiny.pt --limit 20 --attacks fgsm,pgdd", "transfer tiny.pt done --limit 20 --attacks pgdd"),
    *after("evaluate tiny.pt --limit 20",
        Row("--attacks ,", "an empty list", "--attacks: name at least one, separated by commas"),
        Row("--attacks pgd-eot:samples=0", "no samples", "pgd-eot: samples 0: must be at least 1"),
        Row("--attacks aa-fast", "a hyphen for a colon", "unknown attack 'aa-fast'; did you mean aa:fast or fab-t?"),
        Row("--attacks aa:fats", "unknown part of AutoAttack",
            "attack 'aa:fats': 'fats' is no option of aa; it takes fast, members"),
        Row("--attacks aa --aa-members apgd-ce,sqare", "unknown member of AutoAttack",
            "unknown member of AutoAttack 'sqare'; did you mean square?"),
        Row("--attacks aa --aa-members square,apgd-ce,square", "a member twice",
            "aa: the member square is named twice; keep one"),
        Row("--attacks aa --aa-members ,", "no members", "--aa-members: name at least one, separated by commas"),
        Row("--attacks aa:fast --aa-members square", "members without an aa",
            "--aa-members: --attacks names no aa; add it, or leave out --aa-members"),
    ),
    Row("transfer tiny.pt more.pt --attacks fgsm --aa-members square", "members without an aa",
        "--aa-members: --attacks names no aa; add it, or leave out --aa-members"),
    Row("evaluate tiny.pt --noise gaus:8", "unknown noise", "unknown noise 'gaus'; did you mean gauss?"),
    Row("transfer tiny.pt done --noise gaus:8", "unknown noise", "unknown noise 'gaus'; did you mean gauss?"),
    Row("evaluate tiny.pt --noise uniform:300", "too much noise",
        "noise 'uniform:300': write none, uniform:A or gauss:S with a number in (0, 255]"),
    Row("evaluate tiny.pt --noise-draws 0", "no draws",
        "Invalid value for '--noise-draws': 0 is not in the range x>=1; see 'coprobe evaluate --help'"),
    Row("transfer tiny.pt tiny.pt --limit 20", "a model to itself",
        "a model is named twice beside tiny.pt; name each once"),
    Row("transfer tiny.pt done done/checkpoint.pt --limit 20", "a target twice",
        "a model is named twice beside tiny.pt, done/checkpoint.pt; name each once"),
    Row("transfer tiny.pt rgb.pt --limit 20", "grey images for a model of colours",
        "digits (test) has images of 1 channels and the model takes 3; choose the --data it was trained on"),
    # Training: knobs.
    *after("train --data digits --out new",
        Row("--method fgms", "unknown method",
            "unknown training method 'fgms'; did you mean fgsm or n-fgsm or fgsm-rs?"),
        Row("--arch resnet81", "unknown architecture",
            "unknown architecture 'resnet81'; did you mean resnet18 or resnet110 or resnet56?"),
        Row("--preset papr", "unknown preset", "unknown preset 'papr'; did you mean paper?"),
        Row("--option a=1", "unknown option of a method", "method fgsm has no option 'a'; its options: none"),
        Row("--option momentum", "no value", "'momentum': write key=value"),
        Row("--method free --option replays=x", "a word for a number",
            "method free: option replays takes a whole number, not 'x'"),
        Row("--method fgsm-mep --option reset-every=0", "too small",
            "method fgsm-mep: option reset_every must be at least 1, not 0"),
        Row("--method fgsm-mep --option reset-every=2.5", "no whole number",
            "method fgsm-mep: option reset_every takes a whole number, not '2.5'"),
        Row("--method cs-rs --option label-factor=1.5", "too large",
            "method cs-rs: option label_factor must be above 0 and at most 1, not 1.5"),
        Row("--schedule steps", "unknown schedule", "unknown schedule 'steps'; did you mean step?"),
        Row("--epochs 0", "no epochs", "--epochs 0: must be at least 1"),
        Row("--lr nan", "no number", "--lr nan: must be a finite number, at least 0"),
        Row("--logit-weight nan", "no number", "--logit-weight nan: must be a finite number, at least 0"),
        Row("--eps-train 256", "too large", "--eps-train 256: write n for n/255, a number between 0 and 255"),
        Row("--batch-size 0", "no images at once", "--batch-size 0: must be at least 1"),
        Row("--peak 1", "too late", "--peak 1: must be a finite number, above 0 and below 1"),
        Row("--average 1", "too large", "--average 1: must be a finite number, at least 0 and below 1"),
        Row("--precision 16", "unknown precision", "unknown precision '16'; did you mean bf16?"),
        Row("--watch train", "unknown images", "unknown watch 'train'; choose from held-out, test"),
        Row("--noise gauss", "unknown noise", "unknown noise 'gauss'; choose from none, added, both"),
        Row("--held-out 9999", "more images than there are",
            "digits: 1 images for training and 9999 held out are 10000, but there are only 1437; ask for fewer"),
        Row("--limit-train 0", "no images", "--limit-train 0: must be a whole number of at least 1, or all"),
        Row("--save-minutes nan", "no number",
            "Invalid value for '--save-minutes': nan is not a number; see 'coprobe train --help'"),
        Row("--devices 0", "no device",
            "Invalid value for '--devices': 0 is not in the range x>=1; see 'coprobe train --help'"),
        Row("--device cuda:99", "a device that this machine has not",
            "--device cuda:99: this machine has no such device; use --device cpu"),
        Row("--init tiny.pt", "a checkpoint of another network",
            "--init tiny.pt: is a resnet18 {'width': 2, 'num_classes': 10, 'in_channels': 1, 'stem': 'plain', "
            "'activation': 'relu'}, not a resnet18 {'width': 64, 'num_classes': 10, 'in_channels': 1, 'stem': 'plain', "
            "'activation': 'relu'}"),
        *each("unknown node",
            "unknown node 'Q'; the first of 83 known: A, B, C, D, E, conv1, bn1, relu, …",
            "--stable-node Q --stable-weight 1", "--co-node Q --co-top 10"),
    ),
    # Training: knobs that don't go together.
    *after("train --data digits --out new",
        Row("--co-top 10", "--co-node is lacking", "--co-top needs --co-node (B in the paper)"),
        Row("--co-by variance", "--co-node is lacking", "--co-by needs --co-node (B in the paper)"),
        Row("--co-node B", "--co-top is lacking", "--co-node needs --co-top (10 in the paper)"),
        Row("--stable-weight 200", "--stable-node is lacking", "--stable-weight needs --stable-node (B in the paper)"),
        Row("--stable-node B", "--stable-weight is lacking", "--stable-node needs --stable-weight (200 in the paper)"),
        Row("--stable-detach", "both are lacking", "--stable-detach needs --stable-node and --stable-weight"),
        Row("--milestones 3,5", "another schedule", "--milestones needs --schedule step"),
        Row("--schedule step --milestones 3,2", "milestones that fall",
            "--milestones must rise and lie between 1 and 29, the last epoch"),
        Row("--schedule step --milestones soon", "a word for a number",
            "--milestones soon: write epochs separated by commas"),
        Row("--method clean --stable-node B --stable-weight 200", "a method without an attack",
            "method clean has no attack, so --stable-node, --logit-weight and --co-node can't be used"),
        Row("--method free --logit-weight 1", "a method without an attack",
            "method free has no attack, so --stable-node, --logit-weight and --co-node can't be used"),
        Row("--method noise --co-node B --co-top 1", "a method without an attack",
            "method noise has no attack, so --stable-node, --logit-weight and --co-node can't be used"),
        Row("--compile --method gradalign", "second derivatives",
            "method gradalign needs second derivatives, which --compile can't give; leave it out"),
        Row("--compile --co-node B --co-top 10", "masks",
            "--compile works in one process and without --co-node only; leave it out"),
        Row("--tensorboard", "TensorBoard is not installed",
            "--tensorboard needs TensorBoard; run 'pip install coprobe[tensorboard]'",
            fault=without("torch.utils.tensorboard")),
    ),
    # Training: recipe files.
    Row("train --data digits --out new --recipe none.json", "no such file",
        "none.json: No such file or directory; name a JSON file with knobs, like a run's recipe.json"),
    Row("train --data digits --out new --recipe folder", "a directory",
        "folder: Is a directory; name a JSON file with knobs, like a run's recipe.json"),
    Row("train --data digits --out new --recipe text.pt", "no JSON",
        "text.pt: is no JSON (Expecting value: line 1 column 1 (char 0)); name a JSON file with knobs, like a run's "
        "recipe.json"),
    Row("train --data digits --out new --recipe tiny.pt", "a checkpoint",
        "tiny.pt: is no JSON ({said}); name a JSON file with knobs, like a run's recipe.json"),
    Row("train --data digits --out new --recipe cut.json", "cut short",
        "cut.json: is no JSON (Expecting ',' delimiter: line 1 column 13 (char 12)); name a JSON file with knobs, like "
        "a run's recipe.json"),
    Row("train --data digits --out new --recipe list.json", "no knobs by name",
        "list.json: holds no knobs by name; name a JSON file like a run's recipe.json"),
    Row("train --data digits --out new --recipe key.json", "unknown knob",
        "unknown key of a recipe 'epochz'; did you mean epochs?"),
    Row("train --data digits --out new --recipe kind.json", "text for a number",
        "--epochs '3': must be a whole number"),
    Row("train --out new --recipe nul.json", "a NUL in the name of a data set",
        "dataset 'folder': can't read 'a\\x00b' (embedded null byte); name another"),
    # Runs: what is there already.
    Row("train --data digits --out done", "a finished run",
        "done: holds a run already; choose another --out, or pass --resume or --overwrite"),
    Row("train --data digits --out stopped", "an unfinished run",
        "stopped: holds a run already; choose another --out, or pass --resume or --overwrite"),
    Row("train --data digits --out done --resume --overwrite", "go on, and begin again",
        "--resume and --overwrite contradict each other; leave one out"),
    Row("demo --out occupied", "somebody's own run",
        "occupied/co: holds a run that is not the demo's; choose another --out"),
    *after("train --resume --out",
        Row("new", "nothing to resume", "new: holds no run to resume; name another --out, or give a new run its knobs"),
        Row("folder", "nothing to resume",
            "folder: holds no run to resume; name another --out, or give a new run its knobs"),
        Row("stopped --lr 0.3", "another learning rate",
            "stopped: can't resume with --lr 0.3 (not 0.1); leave them out"),
        Row("done --epochs 9", "more epochs than the finished run has",
            "done: can't resume with --epochs 9 (not 2); leave them out"),
        Row("cut-state", "resume.pt is cut short", "cut-state/resume.pt: can't be read; start again with --overwrite"),
        Row("no-state", "resume.pt is empty", "no-state/resume.pt: can't be read; start again with --overwrite"),
        Row("other-state", "resume.pt is something else",
            "other-state/resume.pt: is of another coprobe; start again with --overwrite"),
        Row("no-recipe", "recipe.json is cut short",
            "no-recipe/recipe.json: no readable recipe; train again with --overwrite, or name another run"),
        Row("stopped", "another process works there",
            "stopped: another process works there; wait for it, or name another", fault=held("stopped")),
    ),
    Row("train --recipe small.json --out folder", "another process works there",
        "folder: another process works there; wait for it, or name another", fault=held("folder")),
    Row("figure 1 tiny.pt", "no run", "tiny: figure 1 needs a run directory with history.csv; a checkpoint has none"),
    Row("figure 1 stopped", "a run without a checkpoint yet",
        "stopped: is a directory without a checkpoint.pt; name a checkpoint file"),
    Row("figure 1 done", "a run without a history",
        "done/history.csv: no readable history; train again, or name another run"),
    Row("figure 2 tiny.pt", "a figure that is not of runs", "unknown figure '2'; choose from 1, 3, 4"),
    # The paper's runs.
    Row("figure 13", "no such figure", "unknown figure '13'; choose from 1 to 12"),
    Row("figure 0", "no such figure", "unknown figure '0'; choose from 1 to 12"),
    Row("figure x", "no number", "Invalid value for 'NUMBER': 'x' is not a valid integer; see 'coprobe figure --help'"),
    Row("table 8", "no such table", "unknown table '8'; choose from 1, 2, 3, 4, 5, 6, 7"),
    Row("table x", "no number", "Invalid value for 'NUMBER': 'x' is not a valid integer; see 'coprobe table --help'"),
    Row("claims --only C99", "no such claim", "unknown claim 'C99'; did you mean C39 or C29 or C19?"),
    Row("paper --only fig13", "no such figure",
        "unknown figure or table 'fig13'; did you mean fig12 or fig11 or fig10?"),
    Row("paper --only tab8 --plan", "no such table",
        "unknown figure or table 'tab8'; did you mean tab7 or tab6 or tab5?"),
    *each("an empty list", "--only: name at least one, separated by commas", "paper --only ,", "paper --only ''"),
    *each("unknown scale",
        "unknown scale 'papr'; did you mean paper?",
        "figure 5 --scale papr", "table 5 --scale papr", "claims --scale papr", "paper --scale papr"),
    *each("runs of another scale",
        "small-runs: holds runs of scale small, not demo; name another --runs",
        "figure 5 --runs small-runs", "table 5 --runs small-runs", "claims --runs small-runs",
        "paper --runs small-runs", "paper --plan --runs small-runs"),
    Row("claims --runs marked-badly", "a damaged mark of the scale",
        "marked-badly/scale.json: can't be read; delete it if you know the scale of these runs"),
    Row("claims --runs none", "no such directory",
        "none: no such directory; 'coprobe paper --scale demo --runs none' makes it, or name --runs"),
    Row("paper --only fig7 --runs text.pt", "a file for a directory",
        "text.pt: is not a directory; choose another output directory"),
    Row("figure 8 --runs folder", "runs that are not there yet",
        "run mep-12 is not trained; 'coprobe paper --scale demo --runs folder' makes it"),
    Row("table 5 --runs folder", "runs that are not there yet",
        "nothing of table 5 is measured yet; 'coprobe paper --scale demo --runs folder' makes it"),
    Row("paper --engine rai", "unknown engine", "unknown engine 'rai'; did you mean ray?"),
    Row("paper --engine ray --scale tiny --only fig1", "Ray is not installed",
        "--engine ray needs Ray; run 'pip install coprobe[cluster]'", fault=without("ray")),
    Row("paper --jobs 0", "no jobs at a time",
        "Invalid value for '--jobs': 0 is not in the range x>=1; see 'coprobe paper --help'"),
    Row("paper --seeds 0", "no trainings",
        "Invalid value for '--seeds': 0 is not in the range x>=1; see 'coprobe paper --help'"),
    Row("paper --device gpu", "unknown device", "--device 'gpu' is no device; use cpu, cuda, cuda:1 or mps"),
    # Where results go.
    Row("inspect tiny.pt --plot a.gif", "unknown format", "a.gif: the name must end in .png or .pdf or .svg"),
    Row("increments tiny.pt --plot a.gif", "unknown format", "a.gif: the name must end in .png or .pdf or .svg"),
    Row("inspect tiny.pt --out table", "no format", "table: the name must end in .parquet or .csv or .json"),
    Row("transfer tiny.pt done --out table", "no format", "table: the name must end in .parquet or .csv or .json"),
    Row("claims --out a.txt", "unknown format", "a.txt: the name must end in .csv or .md or .json"),
    Row("inspect tiny.pt --out folder", "a directory for a file", "folder: is a directory; name a file"),
    Row("inspect tiny.pt --out text.pt/a.csv", "a file for a directory",
        "text.pt: is not a directory; choose another output directory"),
    Row("inspect tiny.pt --out dangling/a.csv", "a link to nothing for a directory",
        "dangling: is not a directory; choose another output directory"),
    Row("inspect tiny.pt --out stopped/recipe.json", "a file of a run",
        "stopped/recipe.json: is a file of the run there; choose another name"),
    Row("inspect tiny.pt --plot /proc/a.png", "a virtual file system",
        "/proc: can't write there (No such file or directory); choose another output directory"),
    Row("inspect tiny.pt --out results/a.csv", "no permission",
        "results: can't write there (Permission denied); choose another output directory",
        fault=raising(TEMPORARY_FILE, NOT_ALLOWED)),
    Row("train --data digits --out " + "n" * 300, "a name of 300 characters",
        "n" * 148 + " … " + "n" * 76 + ": can't write there (File name too long); choose another output directory"),
    Row("nodes tiny.pt --out " + "n" * 300 + ".csv", "a name of 304 characters",
        "n" * 148 + " … " + "n" * 84 + ".csv: can't write there (File name too long); choose another name"),
    Row("train --data digits --out locked", "no permission",
        "locked: can't write there (Permission denied); choose another output directory",
        fault=raising(TEMPORARY_FILE, NOT_ALLOWED)),
    *each("a file for a directory",
        "text.pt: is not a directory; choose another output directory",
        "train --data digits --out text.pt", "figure 3 tiny.pt --out text.pt", "table 5 --out text.pt",
        "paper --out text.pt", "demo --out text.pt"),
    # Disks that fill up, files that vanish.
    Row("inspect tiny.pt --out a.csv", "the disk is full",
        "a.csv: No space left on device; once that is mended, run the command again", code=1, fault=unwritable("a.csv"),
        prints=True),
    Row("activations tiny.pt --limit 20 --attack fgsm --plot a.png", "the disk is full",
        "a.png: No space left on device; once that is mended, run the command again", code=1, fault=unwritable("a.png"),
        prints=True),
    Row("train --recipe small.json --out new", "the disk is full at the beginning",
        "new/recipe.json: No space left on device; once that is mended, run the command again", code=1,
        fault=unwritable("recipe.json")),
    Row("train --recipe small.json --out new", "the disk is full after an epoch",
        "new/checkpoint.pt: No space left on device; once that is mended, 'coprobe train --resume --out new' goes on",
        code=1, fault=unwritable("checkpoint.pt"), leaves="new/best.pt new/recipe.json"),
    Row("train --recipe small.json --out new", "permission is lost after an epoch",
        "new/history.csv: Permission denied; once that is mended, 'coprobe train --resume --out new' goes on", code=1,
        fault=unwritable("history.csv", errno.EACCES), leaves="new/best.pt new/checkpoint.pt new/recipe.json"),
    Row("train --recipe small.json --out new", "somebody removes the directory",
        "new: its recipe.json is gone, so somebody removed it; train again", code=1,
        fault=removed("new", "coprobe.training.loop.TrainingLoop.end_epoch")),
    Row("demo --out new", "the disk is full",
        "new/co/checkpoint.pt: No space left on device; once that is mended, 'coprobe train --resume --out new/co' "
        "goes on", code=1, fault=unwritable("checkpoint.pt"), leaves="new/co/best.pt new/co/recipe.json"),
    Row("paper --scale tiny --only fig1 --runs new --device cpu", "the disk is full",
        "train mep-12: new/mep-12/history.csv: No space left on device; once that is mended, 'coprobe train --resume "
        "--out new/mep-12' goes on; make room, and the same command goes on", code=1, fault=unwritable("history.csv"),
        leaves="new/mep-12/best.pt new/mep-12/checkpoint.pt new/mep-12/recipe.json new/scale.json"),
    Row("paper --scale tiny --only fig1 --runs new --device cpu", "the disk is full during a measurement",
        "train mep-12: new/x.csv: No space left on device; make room, and the same command goes on", code=1,
        fault=raising("coprobe.paper.engines.execute", OSError(errno.ENOSPC, "No space left on device", "new/x.csv")),
        leaves="new/scale.json"),
    # Memory.
    Row("evaluate - --model nets.py:hungry --data digits --limit 20", "not enough for a single image",
        "out of memory with a single image; use another --device", code=1),
    Row("activations - --model nets.py:hungry --data digits --limit 20", "not enough for a single image",
        "out of memory with a single image; use another --device", code=1),
    Row("evaluate tiny.pt --limit 20 --eps 16 --batch-size 10", "not enough on the GPU",
        "out of memory with 10 images at once; lower --batch-size", code=1, fault=raising(GRADIENT, FULL_GPU)),
    Row("train --recipe small.json --out new", "not enough on the GPU",
        "out of memory; lower --batch-size, or use another --device", code=1, fault=raising(UPDATE, FULL_GPU),
        leaves="new/recipe.json"),
    # Interruptions.
    Row("inspect tiny.pt", "Ctrl-C",
        "interrupted", code=130, fault=raising("coprobe.checkpoint.load", KeyboardInterrupt())),
    Row("activations tiny.pt --limit 20 --eps 16", "Ctrl-C during the attack",
        "interrupted", code=130, fault=raising(GRADIENT, KeyboardInterrupt())),
    Row("evaluate tiny.pt --limit 20 --eps 16 --out a.csv", "Ctrl-C during the attack",
        "interrupted", code=130, fault=raising(GRADIENT, KeyboardInterrupt())),
    Row("train --recipe small.json --out new", "Ctrl-C during an epoch",
        "stopped in epoch 1 and saved; 'coprobe train --resume --out new' goes on", code=130,
        fault=signalled(signal.SIGINT, UPDATE), leaves="new/recipe.json new/resume.pt"),
    Row("train --recipe small.json --out new", "SIGTERM during an epoch",
        "stopped in epoch 1 and saved; 'coprobe train --resume --out new' goes on", code=143,
        fault=signalled(signal.SIGTERM, UPDATE), leaves="new/recipe.json new/resume.pt"),
    Row("train --recipe small.json --out new", "SIGTERM during an evaluation",
        "stopped in epoch 1 and saved; 'coprobe train --resume --out new' goes on", code=143,
        fault=signalled(signal.SIGTERM, "coprobe.training.monitor.Monitor.measure"),
        leaves="new/recipe.json new/resume.pt"),
    Row("demo --out new", "Ctrl-C during a training",
        "stopped in epoch 1 and saved; 'coprobe train --resume --out new/co' goes on", code=130,
        fault=signalled(signal.SIGINT, UPDATE), leaves="new/co/recipe.json new/co/resume.pt"),
    Row("paper --scale tiny --only fig1 --runs new --device cpu", "Ctrl-C during a job",
        "stopped; the same command goes on", code=130, fault=signalled(signal.SIGINT, "coprobe.paper.engines.execute"),
        leaves=A_RUN),
    Row("paper --scale tiny --only fig1 --runs new --device cpu", "SIGTERM during a job",
        "stopped; the same command goes on", code=143, fault=signalled(signal.SIGTERM, "coprobe.paper.engines.execute"),
        leaves=A_RUN),
    Row("paper --scale tiny --only fig1 --runs new --device cpu --cifar10 folder:none", "no such folder",
        "2 of 2 jobs failed: train mep-12: none: No such file or directory; folder:none needs DIR/train/CLASS/ or "
        "DIR/CLASS/; train fd-b200-12: none: No such file or directory; folder:none needs DIR/train/CLASS/ or "
        "DIR/CLASS/", code=1, leaves="new/failures.json new/fd-b200-12 new/mep-12 new/scale.json"),
    # What nobody expected.
    Row("inspect tiny.pt", "an error in coprobe itself",
        "unexpected ZeroDivisionError: first second (pass --debug for the traceback)", code=1,
        fault=raising("coprobe.checkpoint.load", ZeroDivisionError("first\nsecond"))),
    Row("paper --scale tiny --only fig1 --runs new --device cpu", "an error in coprobe itself, in a job",
        "2 of 2 jobs failed: train mep-12: ZeroDivisionError: by zero; train fd-b200-12: ZeroDivisionError: by zero",
        code=1, fault=raising("coprobe.paper.engines.execute", ZeroDivisionError("by zero")),
        leaves="new/failures.json new/scale.json"),
    # Usage.
    Row("frobnicate", "unknown command",
        "unknown command 'frobnicate'; the first of 18 known: demo, train, methods, inspect, check, nodes, "
        "activations, mask, …"),
    Row("msak", "a slip of the finger", "unknown command 'msak'; did you mean mask?"),
    Row("--nope", "unknown option", "No such option{said}; see 'coprobe --help'"),
    Row("inspect", "a lacking argument", "Missing argument 'CHECKPOINT'; see 'coprobe inspect --help'"),
    Row("increments", "a lacking argument", "Missing argument 'CHECKPOINT'; see 'coprobe increments --help'"),
    Row("transfer tiny.pt", "a lacking argument", "Missing argument 'TARGET...'; see 'coprobe transfer --help'"),
    Row("inspect tiny.pt more.pt", "an argument too many",
        "Got unexpected extra argument (more.pt); see 'coprobe inspect --help'"),
    Row("methods fgsm pgd-at", "an argument too many",
        "Got unexpected extra argument (pgd-at); see 'coprobe methods --help'"),
    Row("methods fgms", "unknown method", "unknown training method 'fgms'; did you mean fgsm or n-fgsm or fgsm-rs?"),
    Row("methods --eps 3", "an option of other commands", "No such option{said}; see 'coprobe methods --help'"),
    Row("train --data digits", "a lacking option", "Missing option '--out'; see 'coprobe train --help'"),
    Row("signs gradient-alinment", "unknown sign",
        "unknown sign 'gradient-alinment'; did you mean gradient-alignment or gradient-size or stage-alignment?"),
    *after("diagnose tiny.pt --limit 20",
        Row("--signs allignment", "unknown sign",
            "unknown sign 'allignment'; did you mean stage-alignment or gradient-alignment or linearity?"),
        Row("--signs ,", "no sign", "--signs: name at least one, separated by commas"),
        Row("--signs layer-transplant", "a sign that needs a second checkpoint",
            "sign 'layer-transplant' compares with a second checkpoint; pass --reference"),
        Row("--signs layer-transplant --reference none.pt", "no such file", "none.pt: no such file; check the path"),
        Row("--signs all --sign-eps 1,two,4", "a word among budgets",
            "--sign-eps two: write n for n/255, a number between 0 and 255"),
        Row("--signs all --sign-eps 1,-2", "a negative budget",
            "--sign-eps -2: write n for n/255, a number between 0 and 255"),
        Row("--signs all --sign-eps 0,1", "a budget of 0",
            "a budget of 0 leaves every image as it is; give numbers above 0"),
        Row("--sign-eps 1,2", "budgets without signs", "--sign-eps: no signs are measured; add --signs all"),
        Row("--reference tiny.pt", "a reference without signs", "--reference: no signs are measured; add --signs all"),
        Row("--per-image x.csv", "values without signs", "--per-image: no signs are measured; add --signs all"),
        Row("--signs gradient-size --per-image x.txt", "unknown kind of file",
            "x.txt: the name must end in .parquet or .csv or .json"),
    ),
    Row("diagnose tiny.pt --eps", "no value", "Option '--eps' requires an argument; see 'coprobe --help'"),
    Row("demo --seed -1", "negative",
        "Invalid value for '--seed': -1 is not in the range x>=0; see 'coprobe demo --help'"),
    Row("demo --device cuda:99", "a device that this machine has not",
        "--device cuda:99: this machine has no such device; use --device cpu"),
]  # the end of the table
# fmt: on

#: What may stand on stderr before the message: that something is fetched, or what a data set is used as.
NOTES = r"downloading .*|.*so the same images serve as either split"
#: And if the work had begun, how far it was.
PROGRESS = rf"{NOTES}|Two ResNet-18 .*|scale tiny: .*|\[\d+/\d+\] .*|epoch +\d.*|fig\d+ is not there yet: .*"


@pytest.fixture(scope="module")
def _place(tmp_path_factory):
    place = tmp_path_factory.mktemp("clutter")
    clutter.make(place)
    return place


@pytest.fixture
def place(_place, monkeypatch):
    """The cluttered working directory, without a network, with a scale of the paper and a demo that take no time."""

    def refuse(request, timeout):
        raise OSError("no route to host")

    monkeypatch.chdir(_place)
    monkeypatch.setenv("COPROBE_DATA", "data-sets")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # of networks of one's own
    monkeypatch.setattr("coprobe.demo.COLLAPSING", clutter.RECIPE)
    monkeypatch.setattr("coprobe.demo.RECIPES", {"co": ("FGSM", clutter.RECIPE)})
    monkeypatch.setitem(sys.modules["coprobe.paper.runs"].SCALES, "tiny", TINY)
    monkeypatch.setitem(sys.modules["coprobe.paper.engines"].ENGINES, "local", lambda order, *_: InlineEngine(order))
    return _place


def everything(place):
    """Every path below a directory, with the time of its last change; directories only where they are empty."""
    found, waiting = {}, [str(place)]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as entries:
            inside = list(entries)
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                found[os.path.relpath(entry.path, place)] = entry.stat(follow_symlinks=False).st_mtime_ns
        if not inside:
            found[os.path.relpath(folder, place)] = 0
    return found


def remove(paths):
    """Remove what a row of the table left, with the directories that were made for it."""
    for path in {Path(path).parts[0] for path in paths}:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink()


def pattern(message):
    """A row's message as a regular expression."""
    places = {"{n}": r"[\d,]+", "{said}": ".*"}
    return "".join(places.get(part) or re.escape(part) for part in re.split(r"(\{n\}|\{said\})", message))


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_one_line_the_exit_code_and_nothing_left_behind(place, coprobe, attacks, row):
    if "/proc" in row.command and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    before = everything(place)
    with row.fault():
        result = coprobe(row.command)
    after = everything(place)
    made = set(after) - set(before)
    remove(made)
    allowed = NOTES if row.code == 2 else PROGRESS
    lines = [line for line in result.err.splitlines() if line and not re.fullmatch(allowed, line)]
    assert len(lines) == 1, result
    line = lines[0].removeprefix("coprobe: error: ")
    assert re.fullmatch(pattern(row.message), line), f"{line!r} instead of {row.message!r}"
    assert (line == lines[0]) == (row.code == 0)
    assert (result.code, bool(result.out)) == (row.code, row.prints), result
    if row.code == 2 and "--reading" not in row.command:  # which is looked up after the attack
        assert attacks == []
    assert len(line) <= 300 and line.isprintable() and "Traceback" not in result.err
    assert " ".join(sorted(made)) == row.leaves
    assert {path: changed for path, changed in after.items() if path in before} == before


def test_the_table_has_every_command():
    from coprobe.cli import COMMANDS

    named = {row.command.split()[0] for row in TABLE}
    assert named >= set(COMMANDS) and len(TABLE) >= 60
    assert len({(row.command, row.wrong) for row in TABLE}) == len(TABLE)


def test_a_second_bad_checkpoint_is_found_before_the_first_attack(place, coprobe, monkeypatch):
    monkeypatch.setattr("coprobe.attacks.gradient.GradientAttack._gradient", None)
    assert "none.pt: no such file" in coprobe("evaluate tiny.pt none.pt --limit 20").err


def test_debug_lets_the_exception_through(place, coprobe):
    with pytest.raises(InputError, match="no such file"):
        coprobe("inspect none.pt --debug")
    with raising("coprobe.checkpoint.load", ZeroDivisionError())(), pytest.raises(ZeroDivisionError):
        coprobe("inspect tiny.pt --debug")


def begun(*arguments, **settings):
    """A child process that runs coprobe here."""
    line = [sys.executable, "-m", "coprobe", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


@pytest.mark.procs
def test_a_real_ctrl_c_ends_a_real_process(place, tmp_path):
    """A network that says when it is asked, and then takes its time."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time, nets\n\n"
        "def net():\n"
        "    def wait(logits, x):\n"
        "        if len(x) == 20:\n"
        "            pathlib.Path('asked').touch()\n"
        "            time.sleep(60)\n"
        "        return logits\n"
        "    return nets.Net(wait)\n"
    )
    shutil.copy("nets.py", tmp_path)
    line = "activations - --model slow:net --data digits --limit 20 --batch-size 20 --device cpu"
    # Whoever runs the tests in the background of a shell ignores SIGINT, and children inherit that.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = begun(*line.split(), cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, ignored)
    deadline = time.monotonic() + 60
    while not (tmp_path / "asked").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    try:
        out, err = child.communicate(timeout=30)
    finally:
        child.kill()
    assert (child.returncode, out, err.strip()) == (130, "", "coprobe: error: interrupted")


@pytest.mark.procs
def test_a_reader_that_has_gone_is_no_reason_to_complain(place):
    child = begun("methods")
    child.stdout.close()
    assert child.stderr.read() == "" and child.wait(30) == 1
