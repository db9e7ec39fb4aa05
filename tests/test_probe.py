"""The probe on networks whose behaviour is known by hand, its verdicts, its checks and its cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from coprobe.checkpoint import Checkpoint
from coprobe.core.processes import Processes
from coprobe.data import Dataset
from coprobe.errors import InputError
from coprobe.metrics import Accuracy, ActivationIncrements, ChannelActivations, ChannelOverlap, Metric, Noise
from coprobe.models import Classifier, build
from coprobe.nodes import NO_MASK, NO_NODES, node_table
from coprobe.probe import Probe
from tests.architectures import CLASSES, IMAGES, NETWORKS, subject
from tests.attacks.small import fingerprint
from tests.metrics.threads import in_threads
from tests.toys import EPSILON, WEAK, Overfitted, checkpoint, grey


def probe(network: nn.Module | None = None, **settings: Any) -> Probe:
    return Probe(checkpoint(network or Overfitted()), **{"dataset": grey(12), "epsilon": EPSILON, **settings})


def test_diagnosis_of_an_overfitted_network(attacks: list[str]) -> None:
    diagnosis = probe().diagnose()
    accuracy = diagnosis.evaluation.accuracy
    assert [accuracy(spec) for spec in ("clean", "fgsm", "pgd:10")] == [1, 1, 0]
    assert diagnosis.verdict == "CO-affected"
    assert diagnosis.salient == {"A": [WEAK]}
    assert diagnosis.sentence.startswith("CO-affected: at 16/255 accuracy is 100.0% clean, 100.0% under FGSM and 0.0%")
    assert "n = 12" in diagnosis.sentence and diagnosis.sentence.endswith("1 of 4 at A")
    assert attacks == ["fgsm", "pgd:10", "pgd:10:rule=always"]


def test_diagnosis_of_a_robust_network() -> None:
    diagnosis = probe(Overfitted(robust=True)).diagnose()
    assert diagnosis.verdict == "stable" and diagnosis.salient == {"A": []}


def test_diagnosis_without_nodes_and_at_a_named_one() -> None:
    network = Overfitted()
    network.node_table = {}
    diagnosis = probe(network).diagnose()
    assert diagnosis.verdict == "CO-affected" and diagnosis.salient == {}
    assert diagnosis.sentence.endswith("(n = 12); " + NO_NODES) and diagnosis.statistics.table().empty
    assert probe(network).diagnose(nodes=["relu"]).salient == {"relu": [WEAK]}
    with pytest.raises(InputError, match="no activation function is seen in this network"):
        probe(network).activations()
    assert len(probe(network).activations(["relu"]).frame) == 4


def test_masking_the_salient_channel_gives_accuracy_back(attacks: list[str]) -> None:
    masking = probe().mask(alpha2=(1.0, 0.5), compare=("random", "variance", "random", "attribution"))
    accuracy = masking.evaluation.accuracy
    assert accuracy("pgd:10") == 0
    assert accuracy("pgd:10", mask="T_act > 1") == 0
    assert accuracy("pgd:10", mask="T_act > 0.5") == 1
    assert accuracy("clean", mask="T_act > 0.5") == 1
    named = {mask.reason: mask for mask in masking.masks if mask.draw == 0}
    assert named["T_act > 0.5"].channels == {"A": (WEAK,)} and named["T_act > 1"].count == 0
    assert {named[name].count for name in ("random", "variance", "attribution")} == {1}
    assert [mask.draw for mask in masking.masks if mask.reason == "random"] == [0, 1, 2, 3, 4]
    assert masking.masks[0] == NO_MASK
    for mask in masking.masks:  # a random mask helps just when it holds the weak channel
        if mask.reason == "random":
            rows = masking.evaluation.frame.query("mask == 'random' and draw == @mask.draw and attack == 'pgd:10'")
            assert rows["accuracy"].item() == (WEAK in mask.channels["A"])
    assert attacks == ["pgd:10:rule=always", "fgsm", "pgd:10"]
    assert list(masking.evaluation.frame["attack"].unique()) == ["clean", "fgsm", "pgd:10"]


def test_unknown_names_are_found_before_the_work(attacks: list[str]) -> None:
    with pytest.raises(InputError, match="unknown node 'layer9'"):
        probe().activations(["layer9"])
    with pytest.raises(InputError, match="unknown selector 'varance'; did you mean variance"):
        probe().mask(compare=("varance",))
    assert attacks == []


@pytest.mark.parametrize(("alpha2", "count"), [((0.5, 0.0), 1), ((0.0, 0.5), 1), ((0.0, 1.0), 1), ((1.0, 0.0), 0)])
def test_size_of_the_compared_masks(alpha2: tuple[float, ...], count: int) -> None:
    masking = probe().mask(alpha2=alpha2, compare=("variance",), attacks=())
    assert masking.masks[-1].reason == "variance" and masking.masks[-1].count == count
    assert list(masking.evaluation.frame["attack"].unique()) == ["clean"]


def test_masking_by_share() -> None:
    masking = probe().mask(percent=50, compare=("variance",), attacks=("pgd:5",))
    assert [mask.reason for mask in masking.masks] == ["none", "top 50 %", "variance"]
    assert WEAK in masking.masks[1].channels["A"] and masking.masks[1].count == masking.masks[2].count == 2
    assert list(masking.evaluation.frame["attack"].unique()) == ["clean", "pgd:5"]


def test_masking_a_given_channel(attacks: list[str]) -> None:
    masking = probe().mask(f"A:{WEAK}", compare=("attribution", "random"), attacks=("pgd:10",))
    named = {mask.reason: mask for mask in masking.masks if mask.draw == 0}
    assert list(named) == ["none", f"channel {WEAK}", "attribution", "random"]
    assert named[f"channel {WEAK}"].channels == named["attribution"].channels == {"A": (WEAK,)}
    assert named["random"].count == 1
    accuracy = masking.evaluation.accuracy
    assert (accuracy("pgd:10"), accuracy("pgd:10", mask=f"channel {WEAK}")) == (0, 1)
    attacks.clear()
    for settings in ({"alpha2": (0.5,)}, {"percent": 10}):
        with pytest.raises(InputError, match=f"'A:{WEAK}' is the channel to mask; leave out --alpha2 and --percent"):
            probe().mask(f"A:{WEAK}", **settings)  # type: ignore[arg-type]
    for work in (probe().mask, probe().overlap, lambda node: probe().activations([node])):
        with pytest.raises(InputError, match="node 'A' has channels 0 to 3, not 4"):
            work("A:4")
    assert attacks == []


def test_a_channel_is_that_of_the_whole_node() -> None:
    whole, one = probe().activations(["A"]), probe().activations([f"A:{WEAK}"])
    table = one.table()
    assert list(table["channel"]) == [WEAK] and set(one.frame["channels"]) == {4}
    assert one.t_act(f"A:{WEAK}") == whole.t_act("A")[WEAK]
    assert one.v_act(f"A:{WEAK}") <= whole.v_act("A")
    assert one.frame.attrs["shapes"] == {f"A:{WEAK}": [4, 1, 1]}
    steps, step = probe().increments(["A"]), probe().increments([f"A:{WEAK}"])
    assert step.s(f"A:{WEAK}")[:, 0].tolist() == steps.s("A")[:, WEAK].tolist()
    assert set(step.table()["channel"]) == {WEAK}


def test_masking_needs_a_threshold() -> None:
    with pytest.raises(InputError, match="--alpha2 or --percent"):
        probe().mask(alpha2=())


CALLS = {
    "activations": lambda p: p.activations().frame,
    "evaluate": lambda p: p.evaluate(("fgsm",), [Noise(), Noise("gauss", 0.1)]).frame,
    "mask": lambda p: p.mask(compare=("random", "attribution"), attacks=("fgsm",)).evaluation.frame,
    "diagnose": lambda p: p.diagnose().evaluation.frame,
    "overlap": lambda p: p.overlap(top=2),
    "transfer": lambda p: p.transfer([checkpoint(Overfitted(robust=True))], ("fgsm",)).frame,
}


@pytest.mark.parametrize("what", CALLS)
def test_a_result_is_found_again_without_an_attack(what: str, tmp_path: Path, attacks: list[str]) -> None:
    first = CALLS[what](probe(cache=tmp_path / "stats"))
    made = len(attacks)
    again = CALLS[what](probe(cache=tmp_path / "stats", device="cpu"))
    assert made > 0 and len(attacks) == made
    pd.testing.assert_frame_equal(first, again)
    assert again.attrs == first.attrs
    CALLS[what](probe())
    assert len(attacks) == 2 * made, "nothing is looked up without a cache"


def test_increments_are_found_again_for_the_same_settings_only(tmp_path: Path, attacks: list[str]) -> None:
    first, again = (probe(cache=tmp_path).increments() for _ in range(2))
    assert attacks == ["pgd:10:rule=always"]
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert again.frame.attrs == first.frame.attrs and first.frame.attrs["checkpoint_digest"]
    for settings in ({"attack": "pgd:9"}, {"nodes": ("relu",)}):
        probe(cache=tmp_path).increments(**settings)  # type: ignore[arg-type]
    for other in (probe(cache=tmp_path, seed=1), probe(cache=tmp_path, batch_size=5), probe()):
        other.increments()
    # Another size of batches is the same experiment here as everywhere.
    assert attacks[1:] == ["pgd:9", *["pgd:10:rule=always"] * 3]


def test_a_label_of_the_checkpoint_is_the_same_experiment(tmp_path: Path, attacks: list[str]) -> None:
    for selected in ("last epoch", "best PGD-10"):
        labelled = checkpoint(Overfitted(), metrics={"selected": selected, "epoch": 10})
        Probe(labelled, grey(12), EPSILON, cache=tmp_path).evaluate()
        assert attacks == ["fgsm", "pgd:10"]
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_the_last_increment_is_that_of_the_statistics() -> None:
    moved, statistics = probe(batch_size=5).increments(), probe(batch_size=5).activations()
    assert moved.s("A")[-1] == pytest.approx(statistics.s("A"), rel=1e-9) and moved.s("A")[-1, WEAK] > 0
    assert moved.s("A").shape == (11, 4) and set(moved.s("A")[:, 0]) == {0}


def test_increments_look_before_they_work(attacks: list[str]) -> None:
    with pytest.raises(InputError, match="'apgd-ce' does not hand out its steps"):
        probe().increments(attack="apgd-ce")
    with pytest.raises(InputError, match="unknown node 'layer9'"):
        probe().increments(["A", "layer9"])
    with pytest.raises(InputError, match="unknown node 'layer9'"):
        probe().overlap("layer9")
    assert attacks == []


def test_overlap_of_a_network_with_one_weak_channel() -> None:
    (row,) = probe().overlap(top=1).to_dict("records")
    assert (row["node"], row["attack"], row["top"], row["images"]) == ("A", "pgd:10:rule=always", 1, 12)
    assert (row["jaccard_images"], row["jaccard_halves"]) == (1, 1)


def test_transfer_shows_other_models_the_images_crafted_on_this_one(attacks: list[str]) -> None:
    source, robust, shy = probe(), checkpoint(Overfitted(robust=True)), checkpoint(Shy())
    moved = source.transfer([robust, shy], ("fgsm", "pgd:10"), [Noise(), Noise("uniform", 0.4)], noise_draws=2)
    assert attacks == ["fgsm", "pgd:10"]
    names = [c.digest for c in (source.checkpoint, robust, shy)]
    assert list(moved.frame["target"].unique()) == names
    assert [moved.accuracy("pgd:10", target=name) for name in names] == [0, 1, 0]
    assert [moved.accuracy("clean", target=name) for name in names] == [1, 1, 1]
    with pytest.raises(InputError, match="accuracy of nobody under fgsm, noise none, mask none was not measured"):
        moved.accuracy("fgsm", target="nobody")
    own = source.evaluate(("fgsm", "pgd:10"), [Noise(), Noise("uniform", 0.4)], noise_draws=2).frame
    rows = moved.frame[moved.frame["target"] == names[0]].drop(columns="target")
    pd.testing.assert_frame_equal(rows, own, check_like=True)
    over = moved.over_draws()
    assert list(over.columns[:3]) == ["target", "attack", "noise"] and len(over) == 3 * 3 * 2
    assert over.attrs["checkpoint_digest"] == names[0] and over.attrs["targets"] == {name: name for name in names}


def test_each_target_is_kept_by_itself(tmp_path: Path, attacks: list[str]) -> None:
    kept, robust, shy = probe(cache=tmp_path), checkpoint(Overfitted(robust=True)), checkpoint(Shy())
    kept.transfer([robust], ("pgd:10",))
    assert kept.transfer([robust, shy], ("pgd:10",)).accuracy("pgd:10", target=shy.digest) == 0
    assert attacks == ["pgd:10"] * 2
    found = kept.transfer([shy, robust], ("pgd:10",))
    assert found.accuracy("pgd:10", target=robust.digest) == 1 and kept.evaluate(("pgd:10",)).accuracy("pgd:10") == 0
    shy.model = type(shy.model)(Shy(), [0.1] * 3, [1.0] * 3).eval()  # the same weights, other preprocessing
    kept.transfer([shy], ("pgd:10",))
    assert attacks == ["pgd:10"] * 3


def test_targets_are_checked_before_the_attack(attacks: list[str]) -> None:
    seven = checkpoint(Overfitted(robust=True))
    seven.arch_args["num_classes"] = 7
    with pytest.raises(InputError, match=r"grey \(test\) has 10 classes and the model 7 logits"):
        probe().transfer([seven])
    with pytest.raises(InputError, match="a model is named twice beside"):
        probe().transfer([checkpoint(Overfitted())])
    target = checkpoint(Overfitted(robust=True))
    probe(precision="bf16").transfer([target], ())
    assert target.model.precision == "32" and attacks == [], "nobody's model is changed"


class Shy(nn.Module):
    """Right on images that nobody has touched, wrong on all others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        touched = (x - x.mean((2, 3), keepdim=True)).abs().amax((1, 2, 3)) + (x.mean((1, 2, 3)) - 128 / 255).abs()
        return nn.functional.pad(1e-3 - touched[:, None], (0, 9)) + self.weight


def test_masks_and_verdict_survive_the_cache(tmp_path: Path) -> None:
    pair = [probe(cache=tmp_path).mask() for _ in range(2)]
    assert pair[0].masks == pair[1].masks and len(pair[0].masks) == 9
    assert pair[0].statistics.v_act("A") == pair[1].statistics.v_act("A")
    verdicts = [probe(cache=tmp_path).diagnose() for _ in range(2)]
    assert verdicts[0].sentence == verdicts[1].sentence and verdicts[0].salient == verdicts[1].salient


def stronger() -> Overfitted:
    network = Overfitted()
    network.strength.data.fill_(1.1)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("what", CALLS)
def test_another_experiment_is_not_found(what: str, tmp_path: Path, attacks: list[str]) -> None:
    call = CALLS[what]
    call(probe(cache=tmp_path))
    bare, normalised = checkpoint(Overfitted()), checkpoint(Overfitted())
    normalised.model = type(bare.model)(Overfitted(), [0.1] * 3, [1.0] * 3).eval()
    others = [
        probe(cache=tmp_path, seed=1),
        probe(cache=tmp_path, epsilon=8 / 255),
        probe(cache=tmp_path, dataset=grey(11)),
        probe(cache=tmp_path, dataset=grey(12, name="other")),
        probe(stronger(), cache=tmp_path),
        Probe(normalised, grey(12), EPSILON, cache=tmp_path),
        Probe(replace(bare, arch_args={**bare.arch_args, "width": 2}), grey(12), EPSILON, cache=tmp_path),
    ]
    for other in others:
        attacks.clear()
        call(other)
        assert attacks, other.facts


def test_a_network_whose_code_has_changed_is_another_one(tmp_path: Path, attacks: list[str]) -> None:
    class Edited(Overfitted):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for network in (Overfitted(), Edited()):
        probe(network, cache=tmp_path).evaluate(("fgsm",))
    assert attacks == ["fgsm"] * 2


@pytest.mark.slow
def test_what_is_kept_is_taken_for_nothing_else(tmp_path: Path) -> None:
    kept = probe(cache=tmp_path)
    kept.mask(compare=())
    for settings in (
        {"alpha2": (0.4,)},
        {"percent": 50},
        {"compare": ("variance",)},
        {"attacks": ("fgsm",)},
        {"attack": "pgd:9"},
        {"alpha": 50.0},
        {"reading": "mse"},
        {"node": "relu:in"},
    ):
        found, anew = (one.mask(**{"compare": (), **settings}) for one in (kept, probe()))  # type: ignore[arg-type]
        assert found.masks == anew.masks, settings
        pd.testing.assert_frame_equal(found.evaluation.frame, anew.evaluation.frame, check_exact=True)


def test_a_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    probe(cache=tmp_path).activations()
    (file,) = tmp_path.glob("activations-*.parquet")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match="damaged result; delete it, and it is made again"):
        probe(cache=tmp_path).activations()


def test_results_say_where_they_come_from() -> None:
    kept = probe(seed=4)
    for frame in (kept.activations().frame, kept.evaluate().frame, kept.mask().evaluation.frame):
        about = frame.attrs
        assert about["checkpoint_digest"] == kept.checkpoint.digest and about["data_digest"] == grey(12).digest()
        assert (about["images"], about["epsilon"], about["seed"], about["arch"]) == (12, 16, 4, "toy")
        assert {"coprobe", "command", "created", "torch"} <= about.keys()
        json.dumps(about, allow_nan=False)


def test_progress_counts_the_images_once(tmp_path: Path) -> None:
    from contextlib import contextmanager

    shown: list[Any] = []

    @contextmanager
    def progress(what: str, images: int) -> Any:
        shown.append((what, images))
        yield shown.append

    probe(progress=progress, batch_size=5).mask(attacks=("fgsm",))
    assert shown == [("PGD-10 (rule=always)", 12), 5, 5, 2, ("FGSM", 12), 5, 5, 2]


def test_what_was_crafted_in_a_block_serves_all_that_comes_in_it(attacks: list[str]) -> None:
    alone, kept = probe(batch_size=5), probe(batch_size=5)
    wanted = alone.diagnose(), alone.mask(attacks=("fgsm",)), alone.evaluate(["pgd:10"]), alone.increments()
    attacks.clear()
    with kept.keeping():
        diagnosis = kept.diagnose()
        crafted = list(attacks)
        with kept.keeping():
            masking, evaluation = kept.mask(attacks=("fgsm",)), kept.evaluate(["pgd:10"])
        assert attacks == crafted and sorted(set(crafted)) == ["fgsm", "pgd:10", "pgd:10:rule=always"]
        increments = kept.increments()  # wants to see the steps
        assert attacks == crafted + ["pgd:10:rule=always"] * 3
    kept.evaluate(["fgsm"])
    assert attacks[-3:] == ["fgsm"] * 3
    frames = (diagnosis.evaluation.frame, masking.evaluation.frame, evaluation.frame, increments.frame)
    others = (wanted[0].evaluation.frame, wanted[1].evaluation.frame, wanted[2].frame, wanted[3].frame)
    for frame, other in zip(frames, others, strict=True):
        pd.testing.assert_frame_equal(frame, other, check_exact=True)
    assert diagnosis.sentence == wanted[0].sentence and masking.masks == wanted[1].masks


def test_what_is_kept_is_that_of_one_budget_and_what_its_stages_were_stays_known(attacks: list[str]) -> None:
    kept = probe()
    with kept.keeping():
        first = kept.evaluate(["aa:fast"])
        again = kept.evaluate(["aa:fast"], [Noise.parse("uniform:4")])
        assert attacks == ["aa:fast"] and first.frame.attrs["stages"] == again.frame.attrs["stages"] != []
        for other in (replace(kept, epsilon=kept.epsilon / 2), replace(kept, seed=1)):
            other.evaluate(["aa:fast"])
    assert attacks == ["aa:fast"] * 3


ARCHS = pytest.mark.parametrize("arch", NETWORKS)


def weak(arch: str, count: int = IMAGES, **settings: Any) -> Probe:
    """A real network that random images bring down one after the other."""
    model, data = subject(arch, "as it is")
    part = Dataset(data.images[:count], data.labels[:count], data.classes, data.name, data.split)
    made = Checkpoint(model, arch, {"num_classes": CLASSES, "in_channels": 3, "width": NETWORKS[arch][0]})
    return Probe(made, part, 8 * NETWORKS[arch][2] / 255, **settings)


def attack_of(arch: str, spec: str) -> str:
    return f"{spec}:step-size={NETWORKS[arch][2]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "nodes"),
    [*((arch, ()) for arch in NETWORKS), ("resnet18", ("C", "D:1")), ("preact-resnet18", ("C", "D:1"))],
)
def test_the_fast_way_finds_what_the_plain_way_finds(arch: str, nodes: tuple[str, ...]) -> None:
    """Folded batch norm and refilled batches: the same accuracies, and T_act but for rounding."""
    attack, always = attack_of(arch, "pgd:5"), attack_of(arch, "pgd:3:rule=always")
    found = []
    for plain in (True, False):
        probe = weak(arch, plain=plain, say=lambda text: None if "the budget is" in text else pytest.fail(text))
        evaluation, statistics, moved, overlap = probe.measure(
            Accuracy(attacks=("fgsm", attack), noises=(Noise(), Noise("uniform", 0.05)), noise_draws=2),
            ChannelActivations(nodes=nodes or tuple(node_table(probe.model)), attack=always),
            ActivationIncrements(nodes=nodes or ("A",), attack=always),
            ChannelOverlap(node="D", attack=always, top=1),
        )
        found.append((evaluation, statistics, moved, overlap))
    (evaluation, statistics, moved, overlap), (other, others, followed, common) = found
    pd.testing.assert_frame_equal(evaluation.frame, other.frame)
    assert evaluation.frame["correct"].nunique() >= 3
    for node in statistics.frame["node"].unique():
        alphas = (100.0, 1 / (statistics.s(node).mean() / IMAGES))  # that of the paper, and one that saturates nowhere
        for alpha in alphas:
            expected = statistics.t_act(node, alpha=alpha)
            assert abs(others.t_act(node, alpha=alpha) - expected).max() < 2e-4
        assert ((expected > 0.1) & (expected < 0.999)).any()
        assert others.v_act(node) == pytest.approx(statistics.v_act(node), rel=1e-4)
    for node in moved.frame["node"].unique():
        assert followed.s(node) == pytest.approx(moved.s(node), rel=1e-3, abs=1e-9)
    assert overlap["jaccard_images"].item() == pytest.approx(common["jaccard_images"].item(), abs=0.02)


@pytest.mark.slow
@ARCHS
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_model_of_the_checkpoint_stays_as_it_is(arch: str, plain: bool, precision: str) -> None:
    probe = weak(arch, 16, plain=plain, precision=precision, say=lambda text: None)
    model = probe.checkpoint.model
    before, places = fingerprint(model), [p.data_ptr() for p in model.parameters()]
    strides = [p.stride() for p in model.parameters()]
    about = (model.precision, model.mean, model.std, model.node_table, [type(module) for module in model.modules()])
    probe.evaluate(("fgsm",), (Noise(), Noise("gauss", 0.1)))
    probe.mask(compare=("variance", "attribution"), attacks=(), attack="fgsm")
    probe.increments(attack="fgsm")
    assert fingerprint(model) == before and [p.data_ptr() for p in model.parameters()] == places
    assert [p.stride() for p in model.parameters()] == strides
    assert about == (
        model.precision, model.mean, model.std, model.node_table, [type(module) for module in model.modules()]
    )  # fmt: skip
    assert model.precision == "32" and (probe.model.network is model.network) == plain


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
@ARCHS
def test_results_do_not_depend_on_the_size_of_batches(arch: str, plain: bool) -> None:
    """To the last bit, noise included. (64 images: a last batch of fewer than 16 rounds otherwise, see `padded`.)"""
    found = []
    for batch_size in (16, 64):
        probe = weak(arch, 64, batch_size=batch_size, plain=plain)
        noises = (Noise(), Noise("gauss", 0.03), Noise("uniform", 0.05))
        evaluation = probe.evaluate((attack_of(arch, "pgd:3"),), noises, 2)
        found.append((probe.activations(attack=attack_of(arch, "pgd:3")).frame, evaluation.frame))
    for small, large in zip(*found, strict=True):
        pd.testing.assert_frame_equal(small, large, check_exact=True)


def test_metrics_of_one_pass_are_those_of_one_each(attacks: list[str]) -> None:
    spec = "pgd:10:rule=always"
    asked = [
        Accuracy(attacks=("fgsm", spec), noises=(Noise(), Noise("gauss", 0.1))),
        ChannelActivations(nodes=("A",), attack=spec),
        ActivationIncrements(nodes=("A",), attack=spec),
        ChannelOverlap(node="A", attack=spec, top=2),
    ]
    evaluation, statistics, moved, overlap = probe(batch_size=5).measure(*asked)
    assert attacks == ["fgsm", spec] * 3, "two attacks for four questions, on three batches"
    one = probe(batch_size=5)
    for together, alone in (
        (evaluation.frame, one.evaluate(("fgsm", spec), (Noise(), Noise("gauss", 0.1))).frame),
        (statistics.frame, one.activations(("A",)).frame),
        (moved.frame, one.increments().frame),
        (overlap, one.overlap(top=2)),
    ):
        pd.testing.assert_frame_equal(together, alone, check_exact=True, check_like=True)
    assert probe().measure() == []


def test_only_what_is_not_kept_is_worked_on(tmp_path: Path, attacks: list[str]) -> None:
    spec = "pgd:10:rule=always"
    statistics = probe(cache=tmp_path).activations(("A",))
    assert attacks == [spec]
    again, evaluation = probe(cache=tmp_path).measure(ChannelActivations(nodes=("A",)), Accuracy(attacks=("fgsm",)))
    pd.testing.assert_frame_equal(again.frame, statistics.frame)
    assert evaluation.accuracy("fgsm") == 1 and attacks[1:].count("fgsm") == 1
    attacks.clear()
    probe(cache=tmp_path).measure(ChannelActivations(nodes=("A",)), Accuracy(attacks=("fgsm",)))
    assert attacks == [] and len(list(tmp_path.glob("*.parquet"))) == 2


def test_wrong_metrics_are_found_before_the_work(attacks: list[str]) -> None:
    right = Accuracy(attacks=("fgsm",))
    for wrong, message in (
        (ChannelActivations(nodes=("layer9",)), "unknown node 'layer9'"),
        (ChannelActivations(nodes=("A",), attack="pdg"), "unknown attack 'pdg'; did you mean pgd"),
        (ActivationIncrements(nodes=("A",), attack="apgd-ce"), "'apgd-ce' does not hand out its steps"),
    ):
        with pytest.raises(InputError, match=message):
            probe().measure(right, wrong)
    assert attacks == []


def test_plain_and_compiled_contradict_each_other() -> None:
    with pytest.raises(InputError, match=r"^--plain switches --compile off; leave one of them out$"):
        probe(plain=True, compiled=True)


def test_plain_is_another_experiment(tmp_path: Path, attacks: list[str]) -> None:
    """It is meant for comparing, so that its results are not taken from the cache of the other."""
    for plain in (False, True):
        attacks.clear()
        attrs = probe(cache=tmp_path, plain=plain).evaluate(("fgsm",)).frame.attrs
        assert attrs["plain"] == plain and (attrs["form"] == "plain") == plain
        assert attacks == ["fgsm"]


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_answer_as_one(count: int, tmp_path: Path) -> None:
    """Each gives all answers; the first one keeps them. (Plain, since torch.fx traces for all threads at once.)"""
    asked: list[Metric[Any]] = [
        Accuracy(attacks=("fgsm", "pgd:10"), noises=(Noise(), Noise("gauss", 0.1))),
        ChannelActivations(nodes=("A",)),
        ChannelOverlap(node="A", top=2),
    ]
    expected = probe(plain=True).measure(*asked)
    probes = [probe(cache=tmp_path / str(rank), plain=True) for rank in range(count)]

    def work(processes: Processes) -> list[Any]:
        return replace(probes[processes.rank], processes=processes).measure(*asked)

    for answers in in_threads(count, work):
        for answer, wanted in zip(answers, expected, strict=True):
            found, one = (table if isinstance(table, pd.DataFrame) else table.frame for table in (answer, wanted))
            pd.testing.assert_frame_equal(found, one, check_like=True, rtol=1e-6)
    assert [len(list((tmp_path / str(rank)).glob("*.parquet"))) for rank in range(count)] == [3, *[0] * (count - 1)]


class Colours(nn.Module):
    """Takes images of at least 8 pixels."""

    min_image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (grey(2, classes=7), r"grey \(test\) has 7 classes and the model 10 logits; choose the --data"),
        (grey(2, side=7), "images of 7×7 pixels; toy needs at least 8"),
        (grey(2, side=16), "images of 16×16 pixels, but the model was trained on 8×9"),
        (
            Dataset(
                torch.zeros(1, 1, 8, 9, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("a",) * 10, "g", "x"
            ),
            r"g \(x\) has images of 1 channels and the model takes 3",
        ),
    ],
)
def test_images_that_do_not_fit(dataset: Dataset, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Probe(checkpoint(Colours(), image_shape=(3, 8, 9)), dataset)


def test_bf16_is_close_to_float32_and_said_in_the_results() -> None:
    torch.manual_seed(0)
    model = Classifier(build("resnet18", width=8, in_channels=1)).eval()
    images = torch.rand(6, 1, 32, 32)
    exact = model(images)
    model.precision = "bf16"
    rough = model(images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.99
    about = probe(precision="bf16").activations(attack="fgsm").frame.attrs
    assert about["precision"] == "bf16"
    with pytest.raises(InputError, match="unknown precision 'half'; choose from 32, tf32, bf16"):
        probe(precision="half")
