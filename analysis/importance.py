"""What matters: which searched settings move the judged metric, which make a training diverge, on how many trials.

Importance by Optuna (PED-ANOVA: what separates the best tenth; fANOVA: share of variance by a forest) over complete
trials; pruned ones stopped at another number of images and are left out. A setting is called to matter only when a
permutation test with Holm's correction says so: with the sampler's own choices as a design, that is a hint, no proof,
and `ablate` (analysis/ablation.py) is the paired answer.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from analysis import importance_plots, runs
from analysis.dimensions import Dimension, dimensions_of, label
from analysis.section import Section, Table, number, plain
from analysis.selection import unit_of
from analysis.tables import StudyTables
from study.contract import Judge, Outcome

TRIALS_PER_DIMENSION = 3
MIN_TRIALS = 10
MIN_EACH_OUTCOME = 3  # diverged and not diverged trials, below which divergence is only counted
ALPHA = 0.05
PERMUTATIONS = 2000
BOUNDARY_SHARE = 0.05  # of a range, on its own scale, from its end
BEST_SHARE = 0.1
SEED = 0
TREES, TREE_DEPTH = 32, 5
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section; says "too few trials" where the search cannot carry more."""
    judge = tables.judge
    search = tables.phase("search")
    ended = search[search["outcome"].isin([Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED])]
    complete = search[(search["outcome"] == Outcome.COMPLETE) & search["value"].notna()]
    dimensions = dimensions_of(tables)
    if judge is None or not dimensions or not len(search):
        answer = "Nothing was searched, so nothing can be said of what matters; the paired ablations are the other way."
        return Section("importance", "What matters?", [answer], (), (), {"trials": 0, "effects": []})
    needed = max(MIN_TRIALS, TRIALS_PER_DIMENSION * len(dimensions))
    enough = len(complete) >= needed
    effects = [row for row in (_effect(complete, d, judge) for d in dimensions) if row is not None] if enough else []
    _holm(effects)
    scores = _importances(complete, dimensions, judge) if enough else {}
    for row in effects:
        row |= {name: scores.get(name, {}).get(row["setting"]) for name in ("ped_anova", "fanova")}
    effects.sort(key=lambda r: (-(r.get("ped_anova") or 0.0), r["setting"]))
    divergence = _divergence(ended, dimensions)
    boundaries = _boundaries(complete, dimensions, judge)
    clipping, skips = _clipping(tables, search), _skips(complete, dimensions)
    answers = [
        *(_effect_sentences(effects, judge) if enough else _too_few(len(complete), len(search), needed, dimensions)),
        *_divergence_sentences(divergence),
        *boundaries,
        *_clip_sentences(clipping),
    ]
    parts = []
    if effects:
        note = "p: permutation test of the difference between bins, after Holm's correction over settings."
        parts.append(Table("importance-effects", "Effect of each setting", pd.DataFrame(effects), note))
    parts.append(Table("importance-divergence", "Divergence by setting", pd.DataFrame(divergence["rows"])))
    if len(clipping):
        note = "A clip that always acts is a normaliser: two such trainings are the same training."
        parts.append(Table("importance-clipping", "Clip norm and the share of clipped steps", clipping, note))
    if len(skips):
        parts.append(Table("importance-skips", "Skip placement per scale", skips, "Complete trials of the search."))
    data = {
        "trials": len(search), "complete": len(complete), "needed": needed, "effects": effects,
        "divergence": divergence, "boundaries": boundaries, "clipping": clipping, "skips": skips,
    }  # fmt: skip
    figures = importance_plots.figures(tables, judge, dimensions, search, effects, clipping, skips)
    return Section("importance", "What matters?", answers, figures, parts, plain(data))


def _effect(complete: pd.DataFrame, dimension: Dimension, judge: Judge) -> Row | None:
    """Best against worst bin of one setting: difference, its interval, the permutation test's p; None: one bin only."""
    bins = dimension.binned(complete)
    values = complete["value"].to_numpy(float) * (1.0 if judge.minimise else -1.0)
    names = [name for name in dict.fromkeys(bins) if name is not None and (bins == name).sum() >= 2]
    kept = np.array([name in names for name in bins])
    if len(names) < 2:
        return None
    values, bins = values[kept], bins[kept]
    means = {name: float(values[bins == name].mean()) for name in names}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    rng = np.random.default_rng(SEED)
    a, b = values[bins == worst], values[bins == best]
    draws = np.subtract(*(m[rng.integers(len(m), size=(PERMUTATIONS, len(m)))].mean(1) for m in (a, b)))
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "setting": dimension.path, "best": best, "worst": worst, "difference": means[worst] - means[best],
        "low": float(low), "high": float(high), "n_best": len(b), "n_worst": len(a), "n": len(values),
        "p": _permutation(values, bins, names, rng),
    }  # fmt: skip


def _permutation(values: np.ndarray, bins: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> float:
    """How often a shuffled setting explains as much variance between its bins as the real one."""
    ranks = pd.Series(values).rank().to_numpy()  # ranks: one wild value must not decide
    member = np.stack([bins == name for name in names]).astype(float)
    counts = member.sum(1)
    real = float((((member @ ranks) / counts - ranks.mean()) ** 2 * counts).sum())
    shuffled = rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
    between = ((((shuffled @ member.T) / counts) - ranks.mean()) ** 2 * counts).sum(1)
    return float((1 + (between >= real - 1e-9).sum()) / (1 + PERMUTATIONS))


def _holm(effects: list[Row]) -> None:
    """Correct the p values for having asked of every setting, in place."""
    highest = 0.0
    for place, row in enumerate(sorted(effects, key=lambda r: float(r["p"]))):
        highest = max(highest, min(1.0, row["p"] * (len(effects) - place)))
        row["p"] = highest
        row["distinguishable"] = highest < ALPHA and row["low"] > 0


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
    """Divergence as an outcome of its own: counts per bin, and fANOVA of the 0/1 outcome where both occur enough."""
    diverged = (ended["outcome"] == Outcome.DIVERGED).to_numpy()
    rows = []
    for dimension in dimensions:
        bins = dimension.binned(ended)
        for name in dict.fromkeys(bins):
            if name is not None:
                inside = bins == name
                rows.append(
                    {
                        "setting": dimension.path,
                        "value": name,
                        "diverged": int(diverged[inside].sum()),
                        "n": int(inside.sum()),
                    }
                )
    result: Row = {"diverged": int(diverged.sum()), "n": len(ended), "rows": rows, "fanova": None}
    if min(diverged.sum(), (~diverged).sum()) >= MIN_EACH_OUTCOME:
        study = _as_study(ended, dimensions, diverged.astype(float))
        result["fanova"] = _evaluate(study, _fanova())
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
    """Per clip norm: trials, share of clipped steps, judged value, divergences, spikes where the traces were read."""
    if "summary.clipped_share" not in search or "config.optim.clip_norm" not in search:
        return pd.DataFrame()
    rows = search[search["outcome"].isin(list(Outcome))]
    shares = pd.to_numeric(rows["summary.clipped_share"], errors="coerce")
    spikes = tables.extras.get("spikes")
    counts = spikes["key"].value_counts().to_dict() if spikes is not None and "key" in spikes else None
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
        if counts is not None:
            row["spikes_per_trial"] = float(np.mean([counts.get(key, 0) for key in rows[members]["key"]]))
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


def _effect_sentences(effects: Sequence[Row], judge: Judge) -> list[str]:
    unit = f" {unit_of(judge.metric)}".rstrip()
    clear = [r for r in effects if r["distinguishable"]]
    sentences = [
        f"{r['setting']} matters: trials with {r['worst']} are worse in {judge.metric} than with {r['best']} by "
        f"{number(r['difference'])}{unit} (95% interval {number(r['low'])} to {number(r['high'])}, "
        f"n = {r['n_worst']} + {r['n_best']} trials)."
        for r in clear
    ]
    unclear = [r["setting"] for r in effects if not r["distinguishable"]]
    if unclear:
        n = max(r["n"] for r in effects)
        sentences.append(f"Not distinguishable from no effect (n = {n} complete trials): {', '.join(unclear)}.")
    return sentences


def _too_few(complete: int, all_trials: int, needed: int, dimensions: Sequence[Dimension]) -> list[str]:
    return [
        f"Too few trials: {complete} of {all_trials} are complete, and {len(dimensions)} searched settings need at "
        f"least {needed}. The plots show what there is; which setting matters cannot be said."
    ]


def _divergence_sentences(divergence: Mapping[str, Any]) -> list[str]:
    count, n = divergence["diverged"], divergence["n"]
    if not n or not count:
        return [f"No trial diverged (n = {n})."] if n else []
    if not divergence["fanova"]:
        return [f"{count} of {n} trials diverged: too few to say which setting does it."]
    first, share = max(divergence["fanova"].items(), key=lambda item: float(item[1]))
    rows = [r for r in divergence["rows"] if r["setting"] == first and r["n"]]
    top = max(rows, key=lambda r: r["diverged"] / r["n"])
    return [
        f"{count} of {n} trials diverged, most by {first} ({share:.0%} of the explained variance): {top['diverged']} "
        f"of {top['n']} with {top['value']}."
    ]


def _clip_sentences(clipping: pd.DataFrame) -> list[str]:
    if not len(clipping):
        return []
    always = clipping[clipping["clipped_share"] > 0.95]["clip_norm"].tolist()
    never = clipping[(clipping["clipped_share"] < 0.01) & (clipping["clip_norm"] != "none")]["clip_norm"].tolist()
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
