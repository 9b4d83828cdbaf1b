"""Benchmarks of eigensolvers and densities: ours beside others, on the same matrices and to the same accuracy.

    python benchmarks/solvers.py [--only mlp100|resnet10|density] [--rounds 2] [--repeat 3] [--small]

Every row runs in processes of its own, in turn, for its peak memory: with the thread settings of the machine, and with one
thread for OpenBLAS, whose workers spin after each call and slow the products down. Others get the loosest setting that
reaches the goal, found beforehand; of the two thread settings the better one counts for them, the machine's for us. What
takes above two minutes is stopped. A package that is missing is a line in the table (`pip install -e '.[bench]'`).

Prints a Markdown table per problem and writes benchmarks/results/solvers_<platform>.json; `--small` tries it out on tiny
problems and writes nothing.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from peers import PARTS, judge_of, problem, reference, rows_of

from fisher_jax.results import provenance

# Seconds for one run; for all timed runs of a process, after which no further one starts.
LIMIT, ENOUGH = 120, 20


# --- one row, in a process of its own ---------------------------------------------------------------------------------


def peak_memory() -> float:
    """MiB: of the device, or of this process on a CPU."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    try:  # the other number starts at that of the process that started this one
        with open("/proc/self/status") as lines:
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def limited(solve: Callable[..., Any], *args: Any, **setting: Any) -> tuple[Any, float]:
    """(result, seconds). The signal has no handler: it ends the process, whatever compiled code it is in."""
    signal.alarm(LIMIT)
    began = time.perf_counter()
    found = jax.block_until_ready(solve(*args, **setting))
    taken = time.perf_counter() - began
    signal.alarm(0)
    return found, taken


def run_row(part: str, name: str, small: bool, truth: np.ndarray, choice: int | None, repeat: int) -> dict[str, Any]:
    """Without a choice: the number of the setting to take. With it: times, memory, accuracy."""
    given = dataclasses.replace(problem(part, small), norm=float(truth[0]))
    settings, check = settings_of(part, name, small), partial(judge_of(part), given, truth)
    try:
        solve = rows_of(part)[name].prepare(given)
    except ImportError as error:
        return {"stopped": f"{error.name} is not installed"}
    if choice is None:
        return {"choice": loosest(solve, settings, check, given.seeds)}
    setting, before = settings[choice], peak_memory()
    limited(solve, given.seeds[0], **setting)
    times, found = [], {}
    for i in range(max(repeat, len(given.seeds))):
        seed = given.seeds[i % len(given.seeds)]
        found[seed], taken = limited(solve, seed, **setting)
        times.append(taken)
        if sum(times) > ENOUGH:
            break
    memory = {"peak MiB": peak_memory(), "before MiB": before}
    facts = {"platform": jax.default_backend(), "provenance": dict(provenance()) | {"cores": str(os.cpu_count())}}
    return {"seconds": times, **memory, **summary([check(f) for f in found.values()]), **facts}


def loosest(solve: Callable[..., Any], settings: Sequence[dict[str, Any]], check: Any, seeds: Sequence[int]) -> int:
    """The first setting that reaches the goal, else the best; printed after each, in case the next one is stopped."""
    best, least = 0, float("inf")
    for i, setting in enumerate(settings):
        found = []
        for seed in seeds:
            result, taken = limited(solve, seed, **setting)
            found.append(check(result))
            if taken > ENOUGH:
                break
        missed = summary(found)["of goal"]
        if missed < least:
            best, least = i, missed
        print(json.dumps({"choice": best}), flush=True)
        if missed <= 1:
            break
    return best


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds."""
    return {name: statistics.median([f[name] for f in found]) for name in found[0]}


# --- all rows, in turn ------------------------------------------------------------------------------------------------


def child(arguments: list[str], threads: str | None = None) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    environment |= {} if threads is None else {"OPENBLAS_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if done.returncode == -signal.SIGALRM:
        return found | {"stopped": f"> {LIMIT} s"}
    if done.returncode:
        return found | {"stopped": (done.stderr.strip().splitlines() or ["failed"])[-1][:100]}
    return found


def settings_of(part: str, name: str, small: bool) -> Sequence[dict[str, Any]]:
    return rows_of(part)[name].settings[: 2 if small else None]


def run_part(part: str, small: bool, rounds: int, repeat: int) -> tuple[str, dict[str, Any]]:
    """(platform, everything measured)."""
    rows, flag = rows_of(part), ["--small"] * small
    results: dict[str, dict[str, Any]] = {name: {"method": name} for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/reference.npy"
        stopped = child(["--reference", part, path, *flag]).get("stopped")
        if stopped:
            raise RuntimeError(f"the reference of {part} failed: {stopped}")
        for name, row in rows.items():
            settings, found = settings_of(part, name, small), {"choice": 0}
            if len(settings) > 1:
                found = child(["--row", part, name, "--truth", path, *flag], threads="1")
                if "choice" in found:  # stopped later, at a tighter setting: the best so far it is
                    found = {"choice": found["choice"]}
            setting = settings[found["choice"]] if "choice" in found else {}
            results[name] |= found | {"setting": ", ".join(f"{k}={v:g}" for k, v in setting.items()), "note": row.note}
            print(f"{part}: {name}: {found}", file=sys.stderr, flush=True)
        for turn in range(rounds):
            for name in rows:
                result = results[name]
                for threads, column in ((None, "default"), ("1", "one thread")):
                    times = result.setdefault(column, [])
                    if "stopped" in result or (turn and sum(times) > ENOUGH):
                        continue
                    which = ["--row", part, name, "--truth", path, "--choice", str(result["choice"])]
                    found = child([*which, "--repeat", str(repeat), *flag], threads)
                    times += found.pop("seconds", [])
                    if threads is None or "peak MiB" not in result:
                        result |= found
                    results[name] = result
                    print(f"{part}: {name}, {column}: {times} {found.get('stopped', '')}", file=sys.stderr, flush=True)
    facts = {key: next((r[key] for r in results.values() if key in r), None) for key in ("platform", "provenance")}
    kept = [{k: v for k, v in r.items() if k not in facts and k != "choice"} for r in results.values()]
    return str(facts["platform"]), {
        "title": PARTS[part] + ", here a tiny one" * small,
        "rows": kept,
        "provenance": facts["provenance"],
    }


def markdown(part: str, measured: dict[str, Any]) -> str:
    """Times are medians; the ratio is to the first row, ours by the machine's settings, theirs by the better of the two."""
    rows, accuracy = rows_of(part), ["distance"] if part == "density" else ["true residual", "error of a value"]
    columns = ["", "s", "s, one OpenBLAS thread", "ratio", "products", *accuracy, "peak MiB (before)", ""]
    lines = [columns, ["---"] * len(columns)]
    first = measured["rows"][0].get("default")
    for r in measured["rows"]:
        times = [statistics.median(r[c]) if r.get(c) else float("nan") for c in ("default", "one thread")]
        counted = times[:1] if rows[r["method"]].ours else times
        ratio = f"{np.nanmin(counted) / statistics.median(first):.2f}" if first and not np.isnan(counted).all() else ""
        remarks = [r.get("stopped", ""), "goal not reached" if not r.get("of goal", 0) <= 1 else "", r["note"]]
        cells = [", ".join(filter(None, (r["method"], r["setting"]))), *(f"{t:.3g}" if t > 0 else "" for t in times), ratio]
        cells += [f"{r[c]:.2g}" if isinstance(r.get(c), float) else str(r.get(c, "")) for c in ("products", *accuracy)]
        cells.append(f"{r['peak MiB']:.0f} ({r['before MiB']:.0f})" if "peak MiB" in r else "")
        cells.append("; ".join(filter(None, remarks)))
        lines.append(cells)
    return f"\n**{measured['title']}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--rounds", type=int, default=2, help="turns of all rows (default: 2)")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each row in a turn (default: 3)")
    parser.add_argument("--small", action="store_true", help="tiny problems; nothing is written")
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--truth", help=argparse.SUPPRESS)
    parser.add_argument("--choice", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.reference:
        part, path = options.reference
        given = problem(part, options.small)  # before: in float64 other weights are drawn
        jax.config.update("jax_enable_x64", True)
        np.save(path, reference(given))
        return
    if options.row:
        # For what others compile of our products; those of F @ v are so anyway.
        jax.config.update("jax_default_matmul_precision", "highest")
        part, name = options.row
        print(json.dumps(run_row(part, name, options.small, np.load(options.truth), options.choice, options.repeat)))
        return
    for part in PARTS if options.only is None else [options.only]:
        platform, measured = run_part(part, options.small, options.rounds, options.repeat)
        print(markdown(part, measured), flush=True)
        if options.small:
            continue
        path = pathlib.Path(__file__).parent / "results" / f"solvers_{platform}.json"
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        results[part] = measured
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False).replace("NaN", "null") + "\n")
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
