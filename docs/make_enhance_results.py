"""Tables of results/enhance.md from what `cryoscan benchmark configs/benchmark/enhance.yaml --json` printed.

    python docs/make_enhance_results.py answer.json

writes results/enhance.json (without the rows of simulated maps) and prints the tables.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "cc_box": "CC_box",
    "cc_mask": "CC_mask",
    "cc_peaks": "CC_peaks",
    "cc_mask_sharp": "CC_mask, sharp model",
    "fsc05": "FSC 0.5, Å",
    "fsc0143": "FSC 0.143, Å",
    "mean_fsc": "mean FSC to 3.5 Å",
    "coverage2": "Cα near a ridge, 2 Å",
    "coverage3": "Cα near a ridge, 3 Å",
}
BINS = ("4.5A", "5A", "6A", "7A", "8A")


def main(path: Path) -> None:
    """Keep the numbers and print the tables."""
    found = json.loads(path.read_text(encoding="utf-8"))
    kept = [row for row in found.pop("enhance.details") if row["part"] != "simulated"]
    rounded = [{key: rounded_part(part) for key, part in row.items()} for row in kept]
    text = json.dumps(found | {"enhance.details": rounded}, ensure_ascii=False)
    (RESULTS / "enhance.json").write_text(text + "\n", encoding="utf-8")
    for part in ("experimental", "blurred", "known", "simulated"):
        if not found[f"enhance.{part}.n"]:
            continue
        print(f"\n{part}: {found[f'enhance.{part}.n']} maps and resolutions\n")
        print("| number | " + " | ".join(f"{name[:-1]} Å" for name in BINS) + " | all |")
        print("|---|" + "---|" * (len(BINS) + 1))
        for metric, name in NAMES.items():
            keys = [f"enhance.{part}.{prefix}{metric}" for prefix in (*(f"{b}." for b in BINS), "")]
            if f"{keys[-1]}.before" not in found:
                continue
            print(f"| {name} | " + " | ".join(cell(found, key, metric) for key in keys) + " |")
        worse = found[f"enhance.{part}.worse_maps"]
        print(f"\nworse in CC_mask: {found[f'enhance.{part}.worse']:.0%}: {', '.join(worse)}")
        for arm in ("perturbed", "homologue", "deposited"):
            key = f"enhance.{part}.{arm}.cc_mask.gain_over_none"
            if key not in found:
                continue
            print(f"{arm} over none: {found[key]:+.4f} ({found[f'{key}_low']:+.4f} to {found[f'{key}_high']:+.4f})")
    for key, value in found.items():
        if key.startswith(("enhance.named", "enhance.speed")):
            print(key, value)


def rounded_part(part: object) -> object:
    """Four digits say it all."""
    return {key: round(value, 4) for key, value in part.items()} if isinstance(part, dict) else part


def cell(found: dict, key: str, metric: str) -> str:
    """Before, classical and after."""
    base, name = key.removesuffix(metric), metric
    if f"{key}.before" not in found:  # no map reaches this resolution
        return "–"
    values = (found[f"{key}.before"], found[f"{base}classical.{name}.after"], found[f"{key}.after"])
    digits = 2 if metric.startswith("fsc") else 3
    return " / ".join(f"{value:.{digits}f}".lstrip("0") for value in values)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
