"""Claims in a study: read, refused, shared, hashed, and tested to the end by the real commands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from analysis import claims, report, runs
from study import plan as planning
from study import preflight, run
from study.claims import LIBRARY
from study.contract import Attr, Claim, Layout, StudyAttr, claims_hash
from study.ledger import Ledger
from study.plan import Plan
from study.session import Session
from tests.study.conftest import REAL, Workplace, command
from tests.study.test_config import plan_of
from trainables.message import Message
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.settings.yamlfile import read_yaml

HEAD = """\
name: tiny
data: {source: rooms, rooms: {holes: true, white_border: true}}
trial: {threads: 1, budget_images: 100}
"""


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that exist with all their weights."""
    monkeypatch.setattr(planning, "check_parts", lambda where, config: None)


def claims_of(tmp_path: Path, text: str, *assignments: str) -> Plan:
    return plan_of(tmp_path, HEAD + text, *assignments)


@pytest.mark.usefixtures("unchecked")
def test_the_library_is_whole_and_every_claim_can_be_planned(tmp_path: Path) -> None:
    listed = read_yaml(LIBRARY).value["claims"]
    assert len(listed) == 25
    plan = claims_of(tmp_path, f"claims: {{seeds: 3, test: [{', '.join(listed)}]}}\n")
    assert [claim.id for claim in plan.stated] == list(listed)
    assert [claim.id for claim in plan.stated if claim.untestable] == ["K4"]  # nobody has accused a frame
    assert all(claim.seeds == (1000, 1001, 1002) for claim in plan.stated)
    settings = [p.config.model_copy(update={"recipe": "", "variant": None}).model_dump_json() for p in plan.claims]
    served = [origin for p in plan.claims for origin in p.origin]
    assert len({p.identity for p in plan.claims}) == len(plan.claims)
    assert {(o["claim"], o["arm"]) for o in served} == {(i, arm) for i in listed if i != "K4" for arm in "ab"}
    once = [s for s, p in zip(settings, plan.claims, strict=True) if p.after is None]
    assert len(once) == len(set(once))  # nothing is trained twice
    assert all(p.config.validate_structure for p in plan.claims)  # P5 asks after edges


@pytest.mark.usefixtures("unchecked")
def test_arms_that_train_the_same_are_one_training_whoever_names_them(tmp_path: Path) -> None:
    """Among them a recipe that is another's half, and one with a term of weight 0."""
    text = """\
claims:
  seeds: 2
  test:
    - P4
    - P3: {b: {name: the paper's}}
    - {id: mine, statement: As half., a: {recipe: densedepth, model.width: 0.5}, b: {loss.sobel: 0.0, batch_size: 4}}
    - {id: other, statement: More seeds., a: {batch_size: 4}, b: {batch_size: 2}, seeds: 3}
"""
    plan = claims_of(tmp_path, text)
    served = {
        (p.group, p.config.seed): [f"{o['claim']} {o['arm']}" for o in p.origin] for p in plan.claims
    }  # fmt: skip
    assert served[("densedepth: augment.channel_swap=0.25", 1000)] == ["P4 a", "P3 b"]
    assert served[("densedepth: model.width=0.5", 1001)] == ["P3 a", "mine a"]
    assert served[("densedepth: loss.sobel=0.0, batch_size=4", 1001)] == ["mine b", "other a"]
    assert served[("densedepth: loss.sobel=0.0, batch_size=4", 1002)] == ["other a"]
    assert len(plan.claims) == 2 * 5 + 2
    by_id = {claim.id: claim for claim in plan.stated}
    assert by_id["P3"].b.group == by_id["P4"].a.group and by_id["P3"].b.name == "the paper's"
    assert (
        by_id["P4"].measured == ("rmse",) and by_id["mine"].measured == ("rmse",) and by_id["mine"].expected == "open"
    )


@pytest.mark.usefixtures("unchecked")
def test_stages_go_on_from_the_checkpoint_that_arms_share(tmp_path: Path) -> None:
    """S2 adds losses to a training of squared errors, or goes on without; R4 has stages of its own."""
    text = "claims: {test: [S2, R4: {a: {stages: [{batch_size: 4}, {data.subset: 0.5}]}, b: {batch_size: 4}}]}\n"
    text = text.replace("R4: {a", "{R4: {a").replace("4}}]}", "4}}}]}")
    plan = claims_of(tmp_path, text)
    squares, added, alone, first, second = plan.claims
    assert squares.after is None and added.after == alone.after == squares.identity
    assert [o["arm"] for o in squares.origin] == ["a", "b"] and added.config.loss["sobel"] == 1.0
    assert second.after == first.identity and second.config.data.subset == 0.5
    assert [o["claim"] + o["arm"] for o in first.origin] == ["R4a", "R4b"]  # its b is a's first stage
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 9, lambda: 0)
    assert [isinstance(session.next(str(n)), dict) for n in range(3)] == [
        True,
        True,
        False,
    ]  # no stage without its start
    entry = session.live["0"].entry
    session.ledger.report(entry, 100, 0.5)
    for part in ("latest", "best"):
        (layout.trial(entry.key) / "checkpoints" / part).mkdir(parents=True)
    session.endings.finish(session.live.pop("0").entry, Message("complete"))
    assert (layout.trial(entry.key) / "checkpoints" / "best").exists()
    both = [session.next(str(n)) for n in (3, 4)]
    starts = {json.loads(spec["config"])["start_from"] for spec in both if isinstance(spec, dict)}
    assert starts == {str(layout.trial(entry.key) / "checkpoints" / "best")}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("P0", "study.yaml:6: claims.test.1: no claim P0 (did you mean"),
        ("P4", "study.yaml:6: claims.test.1: P4 is tested twice; keep one"),
        ("3", "claims.test: each entry is an id, {id: {field: value}} or a claim with its id, not 3"),
        ("{P2: {bb: 3}}", "study.yaml:6: claims.test.1.P2.bb is not a setting (did you mean b?); remove it"),
        ("{P2: {measured: [rsme]}}", "claims.test.1.P2.measured.0: unknown quantity rsme (did you mean rmse?)"),
        ("{P2: {measured: []}}", "study.yaml:6: claims.test.1.P2.measured: name one quantity or more, each once"),
        ("{P2: {a: {optim.lrr: 1.0}}}", "claims.test.1.P2.a.optim.lrr: no setting optim.lrr (did you mean lr?)"),
        ("{P2: {a: {loss.gradient.x: 1.0}}}", "claims.test.1.P2.a.loss.gradient.x: loss.gradient is a value"),
        ("{P2: {a: {loss.grad.x: 1.0}}}", "P2.a.loss.grad.x: no setting loss.grad.x (did you mean gradient?)"),
        ("{P2: {a: {loss.grad: 1.0}}}", "P2.a.loss.grad: unknown loss term grad (did you mean gradient?)"),
        ("{P2: {a: {optim.lr: x}}}", "study.yaml:6: claims.test.1.P2.a.optim.lr: input should be a valid number"),
        ("{P2: {a: {recipe: densdepth}}}", "claims.test.1.P2.a.recipe: no recipe densdepth (did you mean densedepth?)"),
        ("{P2: {recipe: densdepth}}", "study.yaml:6: claims.test.1.P2.recipe: no recipe densdepth"),
        ("{P3: {a: {}}}", "study.yaml:6: claims.test.1.P3: the arms of P3 train the same"),
        ("{P3: {a: {recipe: projected_1664, model.bottleneck: norm}}}", "the arms of P3 train the same"),
        ("{P3: {a: {loss.sobel: 0.0}}}", "the arms of P3 train the same"),
        ("{P2: {margin: null}}", "study.yaml:6: claims.test.1.P2.margin: expected: no_difference needs one"),
        ("{P2: {margin: -1.0}}", "study.yaml:6: claims.test.1.P2.margin: input should be greater than 0"),
        ("{P2: {a: {stages: [{}]}}}", "study.yaml:6: claims.test.1.P2.a.stages: write two stages or more"),
        ("{P2: {a: {name: 3}}}", "study.yaml:6: claims.test.1.P2.a.name: say what the arm is in words, not 3"),
        (
            "{P2: {a: {recipe: psiml_unet, stages: [{}, {}]}}}",
            "study.yaml:6: claims.test.1.P2.a.stages: psiml_unet has stages of its own",
        ),
        ("{P2: {a: {stages: [{}, {batch: 3}]}}}", "study.yaml:6: claims.test.1.P2.a.stages.1.batch: no setting batch"),
        ("{id: x, a: {batch_size: 2}}", "study.yaml:6: claims.test.1: statement is missing; add it"),
        ("{id: x, statement: y, a: {batch_size: 2}, expected: better}", "claims.test.1.expected: input should"),
        ("{id: P1, statement: y}", "study.yaml:6: claims.test.1: P1 is a claim of study/claims.yaml"),
        ("{id: x, statement: y, a: {target.kind: relative}}", "are scored under densedepth and densedepth_affine"),
        (
            "{id: x, statement: y, a: {trace: false}, measured: [damage_after_spikes]}",
            "spikes are counted in the step trace, and it is off; set trace: true",
        ),
        ("{id: x, statement: y, a: {model.encoder: densenet11}}", "densenet121"),
    ],
)  # fmt: skip
def test_refused_with_file_line_and_key(tmp_path: Path, entry: str, sentence: str) -> None:
    text = f"claims:\n  test: [P4,\n    {entry}]\n"
    with pytest.raises(UserError) as refusal:
        claims_of(tmp_path, text, "trial.model.weights=null")
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_study_with_ablations_is_told_what_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(HEAD + "ablate: {settings: [{loss.gradient: 0.0}]}\n")
    monkeypatch.chdir(tmp_path)
    assert run.main(["study.yaml", "--plan"]) == 2
    said = capsys.readouterr().err
    assert "study.yaml:4: ablate is `claims` now; write each question as a claim in claims.test" in said
    assert len(said.splitlines()) == 1


def test_what_a_claim_needs_and_does_not_have_is_said_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(where: str, config: TrialConfig) -> None:
        if config.model.weights == "IMAGENET1K_V1":
            raise UserError(f"{where}: there is no network; give a file")

    monkeypatch.setattr(planning, "check_parts", offline)
    trained = "{P4: {both: {model.weights: null}, b: {batch_size: 4}}}"
    text = f"claims: {{test: [P1, R3, R5, T1, K4, {trained}]}}\n"
    plan = claims_of(
        tmp_path, text, "trial.model.encoder=vgg16", "data.rooms.holes=false", "data.rooms.white_border=false"
    )
    assert [claim.untestable for claim in plan.stated[:5]] == [
        "there is no network; give a file",
        "the pictures have no white border",
        "the data have no holes",
        "it is about DenseNets, and the encoder is vgg16",
        "no frame is accused; analysis.spikes of a study names suspects, for data.exclude in an arm",
    ]
    assert {origin["claim"] for p in plan.claims for origin in p.origin} == {"P4"}
    with pytest.raises(UserError, match=r"claims.test.0: a: there is no network"):  # P3 does not say that it needs any
        claims_of(tmp_path, "claims: {test: [P3]}\n")
    with pytest.raises(
        UserError, match=r"train \(P1 is not testable here: no arm has pretrained weights \(model.weights"
    ):
        claims_of(tmp_path, "claims: {test: [P1]}\n", "trial.model.weights=null")


def test_real_frames_are_looked_at_for_holes_and_a_border(tmp_path: Path, tiny_root: Path) -> None:
    text = f"name: tiny\ndata: {{source: kaggle, root: {tiny_root}}}\ntrial: {{model.weights: null}}\n"
    plan = plan_of(tmp_path, text + "claims: {test: [R3, R5, P4]}\n")
    assert [claim.untestable for claim in plan.stated[:2]] == [
        "the pictures have no white border",
        "the data have no holes",
    ]
    with pytest.raises(UserError, match="nowhere"):
        plan_of(tmp_path, text.replace(str(tiny_root), "nowhere") + "claims: {test: [R5]}\n")


@pytest.mark.usefixtures("unchecked")
def test_claims_are_hashed_before_trial_1_and_a_changed_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "claims: {seeds: 2, test: [P3, R5]}\n"
    plan = claims_of(tmp_path, text)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    other = claims_of(tmp_path, text.replace("seeds: 2", "seeds: 3"))
    assert preflight.record(ledger.store, other, {}, {}) == []
    plan = claims_of(tmp_path, text)
    assert preflight.record(ledger.store, plan, {}, {}) == []  # nothing has been trained: it is written down anew
    ledger.add(plan.claims[0], (), {})
    stated = ledger.store.attribute(StudyAttr.CLAIMS)
    assert [Claim.of(value) for value in stated] == list(plan.stated)
    assert ledger.store.attribute(StudyAttr.CLAIMS_HASH) == claims_hash(plan.stated)
    assert preflight.record(ledger.store, claims_of(tmp_path, text), {}, {}) == []  # as it was
    for changed, sentence in (
        (text.replace("seeds: 2", "seeds: 3"), "study.yaml:4: claims.seeds is 3, but the study began with 2"),
        (text.replace("R5]", "R5, P4]"), "study.yaml:4: claims.test is"),
        (text.replace("P3", "{P3: {margin: 0.5}}"), "study.yaml:4: claims.test is"),
    ):
        with pytest.raises(UserError) as refusal:
            preflight.record(ledger.store, claims_of(tmp_path, changed), {}, {})
        assert sentence in str(refusal.value)
    library = tmp_path / "claims.yaml"  # the same study over another library
    library.write_text(LIBRARY.read_text().replace("    expected: a_not_better\n", "    expected: a_better\n"))
    with monkeypatch.context() as patch:
        patch.setattr("study.claims.LIBRARY", library)
        with pytest.raises(UserError, match="expected of R5 is 'a_better', but the study began with 'a_not_better'"):
            preflight.record(ledger.store, claims_of(tmp_path, text), {}, {})
    assert ledger.store.attribute(StudyAttr.CLAIMS) == stated
    ledger.store.set_attributes({StudyAttr.CLAIMS: [asdict(c) | {"untestable": "no weights"} for c in plan.stated]})
    assert preflight.record(ledger.store, plan, {}, {}) == ["P3 is testable now", "R5 is testable now"]
    old = dict(ledger.store.attribute(StudyAttr.STUDY))
    old.pop("claims")
    ablate = {"recipe": "densedepth", "settings": [{}], "seeds": 1}
    ledger.store.set_attributes({StudyAttr.STUDY: old | {"ablate": ablate}})
    with pytest.raises(UserError, match="begun with the phase ablate, which is claims now"):
        preflight.record(ledger.store, plan, {}, {})
    ledger.store.set_attributes({StudyAttr.STUDY: old | {"ablate": ablate | {"settings": []}}})
    with pytest.raises(UserError, match=r"claims.test is \['P3', 'R5'\], but the study began with \[\]"):
        preflight.record(ledger.store, plan, {}, {})


def test_claims_are_tested_to_their_verdicts_by_the_real_commands(
    workplace: Workplace,
    tiny_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two claims that share an arm and one that cannot be tested; a rate of almost nothing learns less."""
    text = REAL.format(root=tiny_root, threads=1).split("reproduce:")[0]
    text = text.replace("optim.schedule: one_cycle", "optim.schedule: constant\n  optim.lr: 1.0e-2")
    text = text.replace("budget_images: 240", "budget_images: 192")
    text += """\
claims:
  seeds: 3
  test:
    - {id: slow, who: a friend, statement: A rate of almost nothing is better., a: {name: slow, optim.lr: 1.0e-8},
       b: {name: usual}, measured: [rmse, edge_f1_0.2], expected: a_better}
    - {id: swap, statement: "Does swapping matter?", a: {augment.channel_swap: 0.0}, measured: [checkerboard, seconds]}
    - T1
tracking: {uri: null}
"""
    workplace.write(text)
    monkeypatch.chdir(workplace.root)
    assert run.main(["study.yaml", "--plan", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["claims"] == {
        "slow": "to be tested", "swap": "to be tested", "T1": "it is about DenseNets, and the encoder is a U-Net",
    }  # fmt: skip
    assert [row["trainings"] for row in said["phases"] if row["phase"] == "claims"] == [9]
    assert command(workplace).wait() == 0, (workplace.root / "driver.log").read_text()
    ledger = workplace.ledger()
    assert len(ledger) == 9 and {t.user_attrs[Attr.OUTCOME] for t in ledger.values()} == {"complete"}
    shared = [t.user_attrs for t in ledger.values() if t.user_attrs[Attr.GROUP] == "densedepth: base"]
    assert [a[Attr.ORIGIN] for a in shared] == [[{"claim": "slow", "arm": "b"}, {"claim": "swap", "arm": "b"}]] * 3
    assert runs.command("claims", "Verdicts.", claims.analyse, ["tiny", "--json"]) == 0
    slow, swap, projected = json.loads(capsys.readouterr().out)["data"]["claims"]
    assert (slow["verdict"], slow["n"], slow["arm_a"], slow["also"][0][:14]) == (
        "does not hold",
        3,
        "slow",
        "edge_f1_0.2: a",
    )
    assert slow["effect"] < 0 and slow["high"] < 0
    assert swap["measured"] == "checkerboard" and swap["n"] == 3 and swap["also"][0].startswith("seconds: a ")
    assert projected["verdict"] == "not testable here: it is about DenseNets, and the encoder is a U-Net"
    assert report.main(["tiny"]) == 0
    page = (workplace.root / "results/tiny/report.html").read_text()
    assert "A rate of almost nothing is better." in page and "not testable here" in page
    assert (workplace.root / "results/tiny/report/claims.csv").exists()
    assert report.main(["--from-table", "results/tiny/report/study.parquet"]) == 0
