"""The numbers of benchmarks/rdsa.py as a table, as a picture, and against the targets of issue 5. No torch here."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"


def p50(size: Mapping[str, Any], variant: str, mode: str) -> float | None:
    """Median microseconds; None where the variant was not measured."""
    return size["variants"].get(variant, {}).get(mode, {}).get("p50")


def targets(sizes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What an H200 should reach: the worst size of each target, with its number. Empty sizes give NOT_MEASURED.

    At B 1 calls are compared as they are made, without a graph, and on the device, where the host's time is not in it.
    """
    one = [size for size in sizes if size["B"] == 1]
    largest = [size for size in sizes if (size["B"], size["T"], size["M"]) == (256, 1024, 100)]
    empty, kernel = ("empty kernel, graph", "warm"), ("kernel, graph", "warm")
    rows = [_worst("B 1, graph: kernel / empty kernel", one, kernel, empty, "at most", 1.3)]
    rows.append(_target("B 256 T 1024 M 100: floor / kernel, cold", largest, _fraction, "at least", 0.7))
    for variant, least in (("eager gather", 5.0), ("torch.compile", 2.0)):
        for mode in ("warm", "call"):
            name = f"B 1, {mode}: {variant} / kernel"
            rows.append(_worst(name, one, (variant, mode), ("kernel", mode), "at least", least))
    return rows


def table(result: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: medians in microseconds, then targets."""
    names = [name for name in result["sizes"][0]["variants"] if not name.startswith("empty")]
    lines = [f"machine: {result['machine']}", f"copy on the device: {result['copy_gb_per_s']:.0f} GB/s", ""]
    for mode in ("warm", "cold", "call"):
        lines += [f"{mode}, p50 in us", "", "| size | bytes | floor | empty, graph | " + " | ".join(names) + " |"]
        lines.append("|---" * (4 + len(names)) + "|")
        for size in result["sizes"]:
            cells = [f"B {size['B']} T {size['T']} M {size['M']}", f"{size['bytes']:,}", f"{size['floor_us']:.2f}"]
            cells += [_cell(p50(size, name, mode)) for name in ("empty kernel, graph", *names)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["| target | wanted | measured | at | met |", "|---|---|---|---|---|"]
    for row in result["targets"]:
        lines.append(f"| {row['target']} | {row['wanted']} | {row['measured']} | {row['at']} | {row['met']} |")
    return lines


def plot(result: Mapping[str, Any]) -> bytes | None:
    """A PNG: medians by size, warm and cold. None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    sizes = sorted(result["sizes"], key=lambda size: size["floor_us"])
    figure = Figure(figsize=(14, 6), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("warm", "cold")):
        for order, name in enumerate(sizes[0]["variants"]):
            times = [p50(size, name, mode) for size in sizes]
            measured = [(i, us) for i, us in enumerate(times) if us is not None]
            style = "--" if name.endswith(", graph") else "-"  # in the colour of the form, which comes just before
            if measured:
                axes.plot(*zip(*measured), style, color=f"C{order // 2}", marker=".", label=name)
        axes.plot([size["floor_us"] for size in sizes], "k:", label="floor of the bytes")
        axes.set(yscale="log", title=f"{mode} L2", ylabel="microseconds, median")
        labels = [f"{size['B']}, {size['T']}, {size['M']}" for size in sizes]
        axes.set_xticks(range(len(sizes)), labels, rotation=90, fontsize=7)
        axes.set_xlabel("B, T, M")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(f"sdst::RDSA, half values, {result['machine']['GPU']}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


Value = Callable[[Mapping[str, Any]], "float | None"]


def _fraction(size: Mapping[str, Any]) -> float | None:
    return size["variants"]["kernel"].get("fraction_of_floor")


def _worst(
    name: str, sizes: Sequence[Mapping[str, Any]], over: tuple[str, str], under: tuple[str, str], bound: str,
    wanted: float,
) -> dict[str, Any]:  # fmt: skip
    def ratio(size: Mapping[str, Any]) -> float | None:
        a, b = p50(size, *over), p50(size, *under)
        return a / b if a is not None and b is not None else None

    return _target(name, sizes, ratio, bound, wanted)


def _target(name: str, sizes: Sequence[Mapping[str, Any]], value: Value, bound: str, wanted: float) -> dict[str, Any]:
    row: dict[str, Any] = {"target": name, "wanted": f"{bound} {wanted:g}"}
    found = [(number, size) for size in sizes if (number := value(size)) is not None]
    if not found:
        return row | {"measured": NOT_MEASURED, "at": "", "met": NOT_MEASURED}
    number, size = (max if bound == "at most" else min)(found, key=lambda pair: pair[0])
    met = number <= wanted if bound == "at most" else number >= wanted
    at = f"B {size['B']} T {size['T']} M {size['M']}"
    return row | {"measured": round(number, 3), "at": at, "met": "yes" if met else "no"}


def _cell(us: float | None) -> str:
    return NOT_MEASURED if us is None else f"{us:.2f}"
