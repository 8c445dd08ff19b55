"""Importance of the searched settings: for the judged metric and for divergence, with the number of trials.

Importance by Optuna (PED-ANOVA: what separates the best tenth; fANOVA: share of variance by a forest) over complete
trials; pruned ones stopped at another number of images and are left out. A setting is called to matter only when a
permutation test with Holm's correction over settings says so and the interval of best against worst bin, widened for
having picked those two after a look, leaves out zero. Where a pruner chose who came to the end, settings are also
compared at the first report, which every trial reached: among survivors a setting that ruins a trial does not show.
There errors differ by factors, so the interval is that of the ratio of geometric means.
With the sampler's own choices as a design that is a hint, no proof, which the sentence says; claims
(analysis/claims.py) are the paired answer. Divergence is tested the same way.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from analysis import importance_plots, runs
from analysis.dimensions import MIN_BIN, Dimension, dimensions_of, effect, holm, label, permutation
from analysis.page.section import Headline, Section, Table, counted, number, plain
from analysis.selection import unit_of
from analysis.tables.tidy import StudyTables
from study.contract import Judge, Outcome

TRIALS_PER_DIMENSION = 3
MIN_TRIALS = 10
MIN_EACH_OUTCOME = 3  # diverged and not diverged trials, below which divergence is only counted
ALPHA = 0.05
BOUNDARY_SHARE = 0.05  # of a range, on its own scale, from its end
BEST_SHARE = 0.1
SEED = 0
STRONGEST = 5  # settings on the first screen
TITLE = "What matters?"
TREES, TREE_DEPTH = 32, 5
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section; one line where the search has too few trials for more."""
    judge = tables.judge
    search = tables.phase("search")
    ended = search[search["outcome"].isin([Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED])]
    complete = search[(search["outcome"] == Outcome.COMPLETE) & search["value"].notna()]
    dimensions = dimensions_of(tables)
    if judge is None or not dimensions or not len(search):
        answer = "Nothing was searched, so nothing can be said of what matters; claims are the other way."
        return Section("importance", TITLE, [answer], (), (), {"trials": 0, "effects": []})
    needed = max(MIN_TRIALS, TRIALS_PER_DIMENSION * len(dimensions))
    enough = len(complete) >= needed
    effects = [row for row in (effect(complete, d, judge) for d in dimensions) if row is not None] if enough else []
    reached = _at_first_report(tables, ended, judge)
    early = (
        [r for r in (effect(reached, d, judge) for d in dimensions) if r is not None] if len(reached) >= needed else []
    )
    holm([*effects, *early])
    for row in (*effects, *early):
        row["distinguishable"] = row["p"] < ALPHA and row["low"] > 0
    early = [_as_factor(row) for row in early]
    scores = _importances(complete, dimensions, judge) if enough else {}
    for row in effects:
        row |= {name: scores.get(name, {}).get(row["setting"]) for name in ("ped_anova", "fanova")}
    effects.sort(key=lambda r: (-(r.get("ped_anova") or 0.0), r["setting"]))
    divergence = _divergence(ended, dimensions)
    boundaries = _boundaries(complete, dimensions, judge)
    clipping, skips = _clipping(tables, search), _skips(complete, dimensions)
    answers = [
        *(
            _effect_sentences(effects, dimensions, judge)
            if enough
            else [_unknown(len(complete), len(search), needed, dimensions)]
        ),
        *_early_sentences(early, reached, judge),
        *_divergence_sentences(divergence),
        *boundaries,
        *_clip_sentences(clipping),
    ]
    data = {
        "trials": len(search), "complete": len(complete), "needed": needed, "effects": effects,
        "early_effects": early,
        "divergence": divergence, "boundaries": boundaries, "clipping": clipping, "skips": skips,
    }  # fmt: skip
    if len(complete) < MIN_TRIALS:  # points that a plot would only seem to connect
        kept = [_unknown(len(complete), len(search), needed, dimensions)]
        kept += _divergence_sentences(divergence) if divergence["diverged"] else []
        kept += _early_sentences(early, reached, judge)
        return Section("importance", TITLE, kept, (), (), plain(data), Headline(kept[:1]))
    figures = importance_plots.figures(tables, judge, dimensions, search, effects, clipping, skips)
    parts = _tables(unit_of(judge.metric), effects, early, divergence, clipping, skips)
    return Section(
        "importance",
        TITLE,
        answers,
        figures,
        parts,
        plain(data),
        _headline(answers, effects, early, len(reached), judge),
    )


def _at_first_report(tables: StudyTables, ended: pd.DataFrame, judge: Judge) -> pd.DataFrame:
    """The search's trials with the logarithm of the judged error at their first report as value.

    None where nothing was pruned, or where the judged metric is not an error above zero.
    """
    column = f"val/{judge.metric}"
    if column not in tables.reports or not (ended["outcome"] == Outcome.PRUNED).any() or not judge.minimise:
        return ended.iloc[:0]
    first = tables.reports.dropna(subset=[column]).sort_values("images").groupby("key")[["images", column]].first()
    rows = ended[ended["key"].isin(first.index[first[column] > 0])]
    return rows.assign(value=np.log(rows["key"].map(first[column])), images=rows["key"].map(first["images"]))


def _as_factor(row: Row) -> Row:
    """An effect between logarithms as a factor between errors."""
    factor, low, high = (math.exp(row[name]) for name in ("difference", "low", "high"))
    return {k: v for k, v in row.items() if k != "difference"} | {"factor": factor, "low": low, "high": high}


def _early_sentences(early: Sequence[Row], reached: pd.DataFrame, judge: Judge) -> list[str]:
    """What matters at the first report, in sentences."""
    clear = [row for row in early if row["distinguishable"]]
    if not early:
        return []
    where = f"At the first report ({reached['images'].median():.0f} images), which all {len(reached)} trials reached"
    if not clear:
        return [f"{where}, no setting stands out from chance either."]
    named = [
        f"{row['setting']} ({row['worst']} against {row['best']}: {number(row['factor'])} times the {judge.metric}, "
        f"95% interval {number(row['low'])} to {number(row['high'])}, n = {row['n_worst']} + {row['n_best']})"
        for row in clear
    ]
    return [f"{where}, these stand out from chance: {'; '.join(named)}."]


def _headline(
    answers: Sequence[str], effects: Sequence[Row], early: Sequence[Row], reached: int, judge: Judge
) -> Headline:
    """The settings that matter with their intervals, at the end or else at the first report, which so many trials
    reached; where none is clear, the strongest as they are.
    """
    unit = unit_of(judge.metric)
    clear = [row for row in effects if row["distinguishable"]]
    at_first = [row for row in early if row["distinguishable"]]
    if not effects and not at_first:
        return Headline(answers[:1])
    hint = "A hint, not a proof: the sampler chose the trials."
    if clear:
        named = ", ".join(row["setting"] for row in clear)
        stands = "stands" if len(clear) == 1 else "stand"
        said = f"Of {counted(len(effects), 'setting')} compared, {named} {stands} out from chance. {hint}"
    elif at_first:
        named = ", ".join(row["setting"] for row in at_first)
        others = [row["setting"] for row in early if not row["distinguishable"]]
        stands = "stands" if len(at_first) == 1 else "stand"
        said = f"At the first report, which {reached} trials reached, {named} {stands} out from chance"
        said += f", not {', '.join(others)}" if others else ""
        said += ". Among the trials that the pruner let come to the end no setting does" if effects else ""
        said += f". {hint}"
    else:
        said = f"None of {len(effects)} compared settings stands out from chance; the strongest are listed."
    shown = (clear or at_first or effects)[:STRONGEST]
    by = f"{judge.metric} less by a factor of" if "factor" in shown[0] else f"{judge.metric} better by"
    rows = [
        {
            "setting": row["setting"], "from worst": row["worst"], "to best": row["best"],
            by: row.get("factor", row.get("difference")),
            "95% interval": f"{number(row['low'])} to {number(row['high'])}",
            "trials": f"{row['n_worst']} + {row['n_best']}", "beyond chance": row["distinguishable"],
        }
        for row in shown
    ]  # fmt: skip
    units = {} if "factor" in shown[0] else {by: unit, "95% interval": unit}
    return Headline([said], (), [Table("first-importance", "Settings that matter", pd.DataFrame(rows), "", units)])


def _tables(
    unit: str,
    effects: Sequence[Row],
    early: Sequence[Row],
    divergence: Row,
    clipping: pd.DataFrame,
    skips: pd.DataFrame,
) -> list[Table]:
    parts = []
    if effects:
        note = (
            "p: permutation test of the difference between bins, after Holm's correction over settings. low, high: 95% "
            "interval of worst against best bin (Welch), widened for picking two of several bins of this setting."
        )
        units = dict.fromkeys(("difference", "low", "high"), unit) | dict.fromkeys(("ped_anova", "fanova"), "share")
        parts.append(Table("importance-effects", "Effect of each setting", pd.DataFrame(effects), note, units))
    if early:
        note = "At each trial's first report, however it ended; factor: worst bin's error over the best one's."
        parts.append(Table("importance-early", "Effect at the first report", pd.DataFrame(early), note, {}))
    note = "Trials that ended complete, pruned or diverged."
    units = {"diverged": "trials", "n": "trials"}
    rows = pd.DataFrame(divergence["rows"])
    parts.append(Table("importance-divergence", "Divergence by setting", rows, note, units))
    if len(clipping):
        note = (
            "A clip that always acts is a normaliser: two such trainings are the same training. Spikes: of the trials "
            "that left a step trace (traced), where the section on spikes read them."
        )
        units = {"n": "trials", "clipped_share": "share of steps, median", "median_value": unit, "traced": "trials"}
        parts.append(Table("importance-clipping", "Clip norm and the share of clipped steps", clipping, note, units))
    if len(skips):
        note = "Judged value of the complete trials of the search."
        units = {"n": "trials"} | dict.fromkeys(("median", "lowest", "highest"), unit)
        parts.append(Table("importance-skips", "Skip placement per scale", skips, note, units))
    return parts


def _importances(complete: pd.DataFrame, dimensions: Sequence[Dimension], judge: Judge) -> dict[str, dict[str, float]]:
    evaluators = {
        "ped_anova": optuna.importance.PedAnovaImportanceEvaluator(),
        "fanova": _fanova(),
    }
    values = complete["value"].to_numpy(float) * (1.0 if judge.minimise else -1.0)
    if np.ptp(values) == 0:
        return {}
    study = _as_study(complete, dimensions, values)
    return {name: _evaluate(study, evaluator) for name, evaluator in evaluators.items()}


def _fanova() -> optuna.importance.FanovaImportanceEvaluator:
    """Trees of few leaves: a thousand trials in seconds, and the main effects are what is asked for."""
    return optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, max_depth=TREE_DEPTH, seed=SEED)


def _as_study(rows: pd.DataFrame, dimensions: Sequence[Dimension], values: np.ndarray) -> optuna.Study:
    """An in-memory study of resolved settings: the first trial is the recipe's own, wherever it lies in the space."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    columns = {d: [label(v) for v in d.of(rows)] for d in dimensions}
    always = {d: v for d, v in columns.items() if d.choices or None not in v}
    spaces = {d.path: _distribution(d, v) for d, v in always.items()}
    for i, value in enumerate(values):
        params = {d.path: v[i] if d.choices else float(v[i]) for d, v in always.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=float(value)))
    return study


def _distribution(dimension: Dimension, values: Sequence[Any]) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution(list(dict.fromkeys([*map(label, dimension.choices), *values])))
    low, high = min(dimension.low, *values), max(dimension.high, *values)
    return FloatDistribution(low, high, log=dimension.log and low > 0)


def _evaluate(study: optuna.Study, evaluator: optuna.importance.BaseImportanceEvaluator) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental features, and settings that never varied
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _divergence(ended: pd.DataFrame, dimensions: Sequence[Dimension]) -> Row:
    """Divergence as an outcome of its own: counts per bin; where both outcomes occur enough, also fANOVA of the 0/1
    outcome, and the permutation test's p of each setting after Holm's correction."""
    diverged = (ended["outcome"] == Outcome.DIVERGED).to_numpy()
    rows, tested = [], []
    for dimension in dimensions:
        bins = dimension.binned(ended)
        names = [name for name in dict.fromkeys(bins) if name is not None]
        for name in names:
            inside = bins == name
            counts = {"diverged": int(diverged[inside].sum()), "n": int(inside.sum())}
            rows.append({"setting": dimension.path, "value": name} | counts)
        known = np.array([name is not None for name in bins], dtype=bool)
        if len(names) > 1:
            p = permutation(diverged[known].astype(float), bins[known], names)
            tested.append({"setting": dimension.path, "p": p})
    result: Row = {"diverged": int(diverged.sum()), "n": len(ended), "rows": rows, "fanova": None, "p": None}
    if min(diverged.sum(), (~diverged).sum()) >= MIN_EACH_OUTCOME:
        study = _as_study(ended, dimensions, diverged.astype(float))
        holm(tested)
        result |= {"fanova": _evaluate(study, _fanova()), "p": {row["setting"]: row["p"] for row in tested}}
    return result


def _boundaries(complete: pd.DataFrame, dimensions: Sequence[Dimension], judge: Judge) -> list[str]:
    """Ranges at whose end the best trials sit: the optimum may lie outside."""
    best = complete.sort_values("value", ascending=judge.minimise).head(max(3, int(BEST_SHARE * len(complete))))
    warned = []
    for dimension in dimensions:
        if dimension.choices or len(best) < 3:
            continue
        places = dimension.places(best)
        for end, near in (("lower", places <= BOUNDARY_SHARE), ("upper", places >= 1 - BOUNDARY_SHARE)):
            if near.sum() > len(best) / 2:
                bound = number(dimension.low if end == "lower" else dimension.high)
                warned.append(
                    f"Boundary: {int(near.sum())} of the best {len(best)} trials sit at the {end} end of "
                    f"{dimension.path} ({bound}); the optimum may lie beyond it."
                )
    return warned


def _clipping(tables: StudyTables, search: pd.DataFrame) -> pd.DataFrame:
    """Per clip norm: trials, share of clipped steps, judged value, divergences; spikes where traces were read."""
    if "summary.clipped_share" not in search or "config.optim.clip_norm" not in search:
        return pd.DataFrame()
    rows = search[search["outcome"].isin(list(Outcome))]
    shares = pd.to_numeric(rows["summary.clipped_share"], errors="coerce")
    traced = tables.extras.get("spikes.trainings", pd.DataFrame())
    table = []
    for norm in sorted(rows["config.optim.clip_norm"].map(_as_norm).unique()):
        members = (rows["config.optim.clip_norm"].map(_as_norm) == norm).to_numpy()
        complete = rows[members & (rows["outcome"] == Outcome.COMPLETE).to_numpy()]["value"]
        row = {
            "clip_norm": "none" if np.isinf(norm) else f"{norm:g}", "n": int(members.sum()),
            "clipped_share": float(shares[members].median()), "median_value": float(complete.median()),
            "complete": int(complete.notna().sum()),
            "diverged": int((rows[members]["outcome"] == Outcome.DIVERGED).sum()),
        }  # fmt: skip
        if len(traced):
            own = traced[traced["key"].isin(rows[members]["key"])]
            row["spikes_per_1000_steps"] = 1000 * own["spikes"].sum() / own["steps"].sum() if len(own) else math.nan
            row["traced"] = len(own)
        table.append(row)
    return pd.DataFrame(table) if len(table) > 1 else pd.DataFrame()


def _as_norm(value: Any) -> float:
    return float("inf") if value is None or pd.isna(value) else float(value)


def _skips(complete: pd.DataFrame, dimensions: Sequence[Dimension]) -> pd.DataFrame:
    rows = []
    for dimension in (d for d in dimensions if d.path.startswith("model.skips.")):
        bins = dimension.binned(complete)
        for name in dict.fromkeys(bins):
            values = complete["value"].to_numpy(float)[bins == name]
            spread = {"median": np.median(values), "lowest": values.min(), "highest": values.max()}
            rows.append({"scale": dimension.path.rpartition(".")[2], "skip": name, "n": len(values), **spread})
    return pd.DataFrame(rows).sort_values(["scale", "skip"]) if rows else pd.DataFrame()


def _effect_sentences(effects: Sequence[Row], dimensions: Sequence[Dimension], judge: Judge) -> list[str]:
    unit = f" {unit_of(judge.metric)}".rstrip()
    clear = [r for r in effects if r["distinguishable"]]
    sentences = [
        f"{r['setting']} matters (a hint, no proof, for the sampler chose the trials): trials with {r['worst']} are "
        f"worse in {judge.metric} than with {r['best']} by "
        f"{number(r['difference'])}{unit} (95% interval {number(r['low'])} to {number(r['high'])}, "
        f"n = {r['n_worst']} + {r['n_best']} trials)."
        for r in clear
    ]
    unclear = [r["setting"] for r in effects if not r["distinguishable"]]
    if unclear:
        n = max(r["n"] for r in effects)
        sentences.append(f"Not distinguishable from no effect (n = {n} complete trials): {', '.join(unclear)}.")
    asked = [r["setting"] for r in effects]
    if untested := [d.path for d in dimensions if d.path not in asked]:
        sentences.append(f"Fewer than two values with {MIN_BIN} complete trials each, so not compared: "
                         f"{', '.join(untested)}.")  # fmt: skip
    return sentences


def _unknown(complete: int, all_trials: int, needed: int, dimensions: Sequence[Dimension]) -> str:
    return (
        f"n = {complete} of {all_trials} trials complete: to say which of {counted(len(dimensions), 'setting')} matter "
        f"takes at least {needed}."
    )


def _divergence_sentences(divergence: Mapping[str, Any]) -> list[str]:
    count, n = divergence["diverged"], divergence["n"]
    if not n or not count:
        return [f"No trial diverged (n = {counted(n, 'trial')})."] if n else []
    if divergence["p"] is None:
        return [
            f"{count} of {n} trials diverged: to say which setting does it takes {MIN_EACH_OUTCOME} that diverged and "
            f"{MIN_EACH_OUTCOME} that did not."
        ]
    named = [setting for setting, p in divergence["p"].items() if p < ALPHA]
    if not named:
        return [f"{count} of {n} trials diverged; which setting does it is not distinguishable from chance."]
    first = max(named, key=lambda setting: float(divergence["fanova"].get(setting, 0.0)))
    rows = [r for r in divergence["rows"] if r["setting"] == first and r["n"]]
    top = max(rows, key=lambda r: r["diverged"] / r["n"])
    return [
        f"{count} of {n} trials diverged, most by {first}: {top['diverged']} of {top['n']} with {top['value']} "
        f"(permutation test, p = {number(divergence['p'][first])})."
    ]


def _clip_sentences(clipping: pd.DataFrame) -> list[str]:
    if not len(clipping):
        return []
    named = clipping["clip_norm"] + [f" (n = {counted(int(n), 'trial')})" for n in clipping["n"]]
    always = named[clipping["clipped_share"] > 0.95].tolist()
    never = named[(clipping["clipped_share"] < 0.01) & (clipping["clip_norm"] != "none")].tolist()
    texts = []
    if always:
        texts.append(
            f"Clip norm {', '.join(always)} clips nearly every step: it normalises the gradient, rather than clips."
        )
    if never:
        texts.append(f"Clip norm {', '.join(never)} clips almost no step: those trainings are unclipped ones.")
    return texts


if __name__ == "__main__":
    sys.exit(
        runs.command("importance", "Say which searched settings matter, and on how many trials that rests.", analyse)
    )
