"""The command `densedepth` (also `python -m trainables`): lists all commands and runs them.

`densedepth study run ARGUMENTS` is `python -m study.run ARGUMENTS`, and so on; no library is imported before.
"""

from __future__ import annotations

import runpy
import sys
from typing import Final

from trainables import __version__

# Name -> the module that is run, and its purpose.
COMMANDS: Final = {
    "study run": ("study.run", "plan a study and train it: reproduce, claims, search, confirm"),
    "report": ("analysis.report", "judge and explain a study; write one page; two studies: compare them"),
    "reproduction": ("analysis.reproduction", "compare reproduced systems with what they published"),
    "claims": ("analysis.claims", "whether each published claim holds, from paired trainings"),
    "importance": ("analysis.importance", "which searched settings matter, and on how many trials that rests"),
    "spikes": ("analysis.spikes", "what caused each loss spike; --replay trains it again"),
    "selection": ("analysis.selection", "the champion, and how sure the choice is"),
    "final_evaluation": ("analysis.final_evaluation", "the sealed test: one frozen list, scored once"),
    "learned": ("analysis.sections.learned", "whether the judged checkpoints learned anything of the picture"),
    "variance": ("analysis.variance", "how much of a difference is luck"),
    "served_model": ("analysis.served_model", "register a study's champion as an MLflow model"),
    "score": ("analysis.score", "any model's depth maps, or a checkpoint, under every protocol"),
    "train": ("trainables.train", "one training of a published system, without Ray or MLflow"),
    "predict": ("trainables.predict", "depth of your pictures: PNG in millimetres, NPY in metres, coloured"),
    "export": ("trainables.export", "a checkpoint as an ONNX model, checked by its scores"),
    "doctor": ("trainables.data.doctor", "what is wrong with a data set, before anything trains"),
    "rooms": ("trainables.data.rooms", "write the embedded data set"),
    "weights_keras": ("trainables.weights_keras", "the authors' released weights as a checkpoint"),
    "parity": ("trainables.parity", "agreement with the reference code's golden numbers"),
    "overhead": ("trainables.bench.overhead", "what Ray, the ledger and MLflow cost a training"),
    "bench": ("trainables.bench", "speed of a training, beside a plain loop"),
}


def listed() -> str:
    """The help text: every command with its purpose."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: densedepth [--help] [--version] COMMAND [ARGUMENT ...]",
            "",
            "The DenseDepth study: trains, judges, explains.",
            "",
            *lines,
            "",
            "densedepth COMMAND --help tells its arguments, with an example.",
        ]
    )


def main() -> int:
    """The command; exit code 2 for a command that there is not."""
    from trainables.runtime import cli

    return cli.guarded("densedepth", _run)


def _run() -> int:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(listed())
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            sys.argv = [f"densedepth {name}", *words[count:]]
            runpy.run_module(COMMANDS[name][0], run_name="__main__")
            return 0  # where the module has not ended the process itself
    from trainables.settings.yamlfile import nearest

    groups = {name.split()[0] for name in COMMANDS if " " in name}
    name = " ".join(words[: 2 if words[0] in groups else 1])
    print(f"densedepth: no command {name}{nearest(name, COMMANDS)}; densedepth --help lists them", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
