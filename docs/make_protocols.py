"""Table of the protocols: `python docs/make_protocols.py` writes it into docs/which-number.md from the registry."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "which-number.md"
BEGIN, END = "<!-- protocols: written by docs/make_protocols.py -->", "<!-- end of protocols -->"
sys.path.insert(0, str(ROOT))

from analysis.tables.published import ROWS  # noqa: E402 - found beside this file
from analysis.waterfall import crop_words  # noqa: E402
from trainables.evaluation.protocols import ALIGNED, PROTOCOLS, Protocol  # noqa: E402


def row(protocol: Protocol) -> list[str]:
    """A protocol's cells."""
    low, high = protocol.valid_m
    how = [
        f"crop {crop_words(protocol.crop)}", f"{low:g} < truth < {high:g} m",
        f"prediction clipped to {protocol.clip_m[0]:g} to {protocol.clip_m[1]:g} m",
        *(["the truth is resized to the map"] if protocol.resize == "truth" else []),
        *([ALIGNED[protocol.scaling]] if protocol.scaling != "none" else []),
        {"per_image": "mean of the images", "image_median": "median of the images", "pooled": "mean over all pixels"}[
            protocol.average
        ],
        *(["arguments swapped: relative to the prediction"] if protocol.arguments_swapped else []),
    ]  # fmt: skip
    truth = {"filled": "in-painted", "raw": "measured", None: "any"}[protocol.truth]
    published = [f"{one.who} (`{one.key}`)" for one in ROWS if one.protocol == protocol.name]
    cells = [f"`{protocol.name}`", truth, "; ".join(how), protocol.conditions, "; ".join(published) or "-"]
    return [*cells, protocol.source]


def written() -> str:
    """The page with the table as the registry has it now."""
    head = ["name", "truth", "how", "may be called so on", "published under it (`--against`)", "source"]
    table = [head, ["---"] * len(head), *(row(protocol) for protocol in PROTOCOLS.values())]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
    sys.exit(0)
