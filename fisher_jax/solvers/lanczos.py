"""Thick-restart block Lanczos: the largest eigenvalues, with a search for missed ones.

1. Iterate: grow the basis, restart from the best Ritz vectors, until the residual estimates of all wanted pairs are small.
2. Search: keep the wanted pairs, start again from random directions orthogonal to them. A Ritz value above the wanted
   ones proves that an eigenvalue (often a copy of a repeated one) was missed: back to 1 with it. Otherwise the random start
   bounds, up to a small failure probability, every eigenvalue that is not in the list (`unseen.py`).
3. Finish: true residuals from the products of the basis vectors, which are kept, and error bounds.

Steps 1 and 2 are one `lax.while_loop`. Under jit it runs whole; otherwise the host drives it a few steps at a time, for
progress and for interruption.

Reference: Wu and Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000.
"""

import dataclasses
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks, krylov, linalg
from fisher_jax.krylov import Basis, Change
from fisher_jax.operators import LinearOperator, ScaledOperator, apply
from fisher_jax.results import EigenResult, provenance
from fisher_jax.solvers import unseen
from fisher_jax.solvers.base import (
    HostLoop,
    Progress,
    Reporter,
    certify,
    check_symmetry,
    features,
    keep_above,
    measured,
    smaller_side,
)
from fisher_jax.solvers.dense import Dense
from fisher_jax.solvers.lifting import lift_pairs
from fisher_jax.solvers.start import product_error, start_block

Array = jax.Array

ITERATE, SEARCH, DONE, STOPPED = range(4)
PRECISIONS = ("highest", "tensorfloat32", "bfloat16")

# Residual estimates within this factor of the tolerance are looked at after every step.
NEAR = 30
# A search is good enough when its bound exceeds the largest value it has met by no more than this fraction.
SEARCH_MARGIN = 0.5
# Block steps of a search before the first look, and those that the basis always has room for.
FIRST_LOOK, SEARCH_ROOM = 4, 11
# Without `above`, searches take no more than one product for this many of the iteration.
SEARCH_SHARE = 4


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Thick-restart Lanczos with full reorthogonalization, in the smaller of primal and dual space.

    Args:
        tol: a pair is converged when ‖M v − λ v‖ <= tol·‖M‖, which is tol·λ_max without negative eigenvalues. A tol below
            the rounding error of the products is replaced by that.
        steps: basis vectors kept, m; default 2 k + 20. Memory: 2 m + block vectors (the basis and its products, which give
            the true residuals without further products), 4 block work vectors, and the k results.
        restarts: give up after so many.
        block: vectors multiplied at once.
        precision: of matrix products inside M: "highest", or "tensorfloat32" or "bfloat16", with sums, the basis and its
            orthogonalization in float32. The error of such a product is measured against a full one and stands in the error
            bounds; eigenvalues below it (ten times it, for vectors lifted from the dual) are unresolved, NaN.
    """

    tol: float = 1e-6
    steps: int | None = None
    restarts: int = 300
    block: int = 1
    precision: str = "highest"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise _checks.fail(
                "Lanczos", f"precision={self.precision!r} is not known", f"give one of {', '.join(PRECISIONS)}"
            )
        _checks.tolerance("Lanczos", self.tol)
        _checks.integer("Lanczos", "block", self.block, 1)
        _checks.integer("Lanczos", "restarts", self.restarts, 0)
        if self.steps is not None:
            _checks.integer("Lanczos", "steps", self.steps, 2)

    def solve(
        self,
        operator: LinearOperator,
        k: int,
        *,
        key: Array,
        v0: Any = None,
        above: Any = None,
        progress: Reporter | None = None,
    ) -> EigenResult:
        side, b = smaller_side(operator), self.block
        least = k + 2 * b
        m = self.steps if self.steps is not None else 2 * k + 20 + 2 * b
        if m < least:
            raise _checks.fail("Lanczos", f"steps={m} is too small for k={k}, block={b}", f"give steps >= {least}")
        m = max(m, k + b * SEARCH_ROOM)
        if m + b >= side.size:
            # The basis would span the whole space: diagonalizing it is the same work, without rounding in a basis.
            return Dense().solve(operator, k, key=key, above=above)
        exact = operator.prepared(b, 2 * k + 20)
        operator = exact if self.precision == "highest" else exact.reduced(self.precision)
        side = smaller_side(operator)
        lifted = side is not operator
        plan = _Plan(k, m, b, self.restarts, above is not None, lifted, side.size)
        k_start, k_run, k_lift = jax.random.split(key, 3)
        block, noise, scale, started = start_block(side, operator, b, v0, k_start)
        spent = started
        if operator is not exact:
            noise = jnp.maximum(noise, product_error(side, smaller_side(exact), block))
            spent += b
        side = ScaledOperator(side, scale)
        threshold = scale * jnp.asarray(0.0 if above is None else above, side.dtype)
        limits = _Limits(jnp.asarray(self.tol, side.dtype), noise, threshold)
        state = _begin(plan, block, k_run)
        if _checks.traced((operator, state, limits)):
            state, interrupted = _advance(side, state, limits, plan, jnp.asarray(2**30, jnp.int32)), False
        else:
            state, interrupted = _drive(side, state, limits, plan, progress, spent)
            check_symmetry("eigsh", operator, float(state.basis.skew / state.basis.norm), float(_most_skew(limits)))
        rows, values, residuals, within, wanted, norm, reachable, rest, extra = _collect(
            operator, scale, state, limits, plan, k_lift
        )
        spent += extra
        # With `above` the list is as long as it is, but for a row of NaN if empty, which is dropped below.
        missing = (k if above is None else 1) - rows.shape[0]
        if missing > 0:
            found = rows if rows.shape[0] else jnp.zeros((0, operator.size), rows.dtype)
            rows = jnp.concatenate([found, jnp.full((missing, operator.size), jnp.nan, rows.dtype)])
            values, residuals, within = (
                jnp.pad(a, (0, missing), constant_values=jnp.nan) for a in (values, residuals, within)
            )
            wanted = jnp.pad(wanted, (0, missing))
        # What the search did not set aside, it has bounded.
        values = jnp.where(wanted, values, jnp.nan)
        notes = []
        if not _checks.traced(reachable) and self.tol < float(reachable):
            notes.append(
                f"tol={self.tol:g} is below the rounding error of the residuals, {float(reachable):.1e}, used instead"
            )
        if interrupted:
            notes.append("interrupted: only what had converged is given")
        if operator is not exact:
            unresolved = wanted & ~(jnp.abs(values) > noise * norm)
            wanted = wanted & ~unresolved
            if not _checks.traced(unresolved) and bool(unresolved.any()):
                notes.append(f"{int(unresolved.sum())} below the error of products in {self.precision}, unresolved")
        result = certify(
            operator,
            rows,
            values,
            residuals,
            norm,
            noise,
            jnp.maximum(jnp.asarray(self.tol, side.dtype), reachable),
            rest,
            spent + state.steps * b,
            unit=1 / scale,
            within=within,
            wanted=wanted,
            method=f"Lanczos(tol={self.tol:g}, steps={m}, block={b}) on the " + ("dual" if lifted else "operator"),
            info=provenance(
                key,
                operator.dtype,
                size=operator.size,
                iterated=side.size,
                failure_probability=unseen.FAILURE,
                **_counts(state, b, started),
                **features(exact),
                **({} if self.precision == "highest" else {"matmul_precision": self.precision}),
                **({"note": "; ".join(notes)} if notes else {}),
            ),
        )
        return result if above is None else keep_above(result, above)


class _Plan(NamedTuple):
    """Static settings of one solve."""

    k: int
    m: int
    b: int
    restarts: int
    threshold: bool  # is `above` given?
    lifted: bool  # iterating on the dual, so that residuals grow by √(λ_max/λ) when lifted
    n: int


class _Limits(NamedTuple):
    tol: Array
    noise: Array  # rounding error of a product, relative to ‖M‖
    above: Array


class _State(NamedTuple):
    basis: Basis
    phase: Array
    steps: Array  # block steps taken
    restarts: Array
    lock: Array  # leading basis rows that a search keeps
    lowest: Array  # smallest wanted value when the search began
    iterated: Array  # block steps before the first search
    searches: Array  # searches ended
    seen: Array  # largest value met by the searches
    numbers: Array  # candidates for an eigenvalue not in the list
    odds: Array  # sum of the log odds that each start of the searches ended so far has missed one
    starts: Array  # how many
    searched: Array  # block steps of the running search
    converged: Array  # () wanted pairs with a small residual estimate
    worst: Array  # () largest residual estimate among wanted pairs, over ‖M‖
    rest: Array  # () bound on all eigenvalues not in the list; NaN if not established


@partial(linalg.precise_jit, static_argnums=0)
def _begin(plan: _Plan, block: Array, key: Array) -> _State:
    zero, none = jnp.zeros((), jnp.int32), jnp.asarray(jnp.nan, block.dtype)
    low = jnp.asarray(-jnp.inf, block.dtype)
    basis = krylov.start(block, plan.m, key)
    numbers = jnp.full(unseen.CANDIDATES + 1, jnp.inf, block.dtype)
    odds = jnp.zeros_like(numbers)
    return _State(basis, zero, zero, zero, zero, low, zero, zero, low, numbers, odds, zero, zero, zero, none, none)


# --- the loop ---------------------------------------------------------------------------------------------------------


@partial(linalg.precise_jit, static_argnums=3, donate_argnums=1)
def _advance(side: Any, state: _State, limits: _Limits, plan: _Plan, steps: Array) -> _State:
    """Up to `steps` block steps, less when done."""
    end = state.steps + steps

    def running(state: _State) -> Array:
        return (state.phase < DONE) & (state.steps < end)

    return jax.lax.while_loop(running, lambda s: _one_step(side, s, limits, plan), state)


def _step(side: Any, state: _State, limits: _Limits, plan: _Plan) -> _State:
    """One block step outside any loop: XLA runs convolutions in a CPU loop some 35 times slower.

    In parts, so that the product is compiled once for all callers, and the long vectors are changed in place.
    """
    basis = _append(state.basis, apply(side, _next_block(state.basis)))
    state, change = _decide_apart(_without_rows(state, basis), limits, plan)
    state = _with_rows(state, basis)
    return state._replace(basis=_move(state.basis, change)) if bool(change.rotate) else state


def _one_step(side: Any, state: _State, limits: _Limits, plan: _Plan) -> _State:
    basis = krylov.expand(lambda V: apply(side, V), state.basis)
    state, change = _decide(_without_rows(state, basis), limits, plan)
    return state._replace(basis=krylov.move(_with_rows(state, basis).basis, change))


@partial(linalg.precise_jit, donate_argnums=0)
def _append(basis: Basis, W: Array) -> Basis:
    return krylov.append(basis, W.T)


def _without_rows(state: _State, basis: Basis) -> _State:
    """With the small arrays of a basis only: a branch that carried the long vectors would copy them."""
    none = np.zeros((0, 0), basis.vectors.dtype)
    return state._replace(basis=basis._replace(vectors=none, images=none))


def _with_rows(state: _State, basis: Basis) -> _State:
    return state._replace(basis=state.basis._replace(vectors=basis.vectors, images=basis.images))


def _decide(state: _State, limits: _Limits, plan: _Plan) -> tuple[_State, Change]:
    """After a step: look, judge, or go on. No long vectors are touched."""
    every = max(1, (plan.m - plan.k) // (16 * plan.b))
    often = max(1, (plan.m - plan.k) // (32 * plan.b))
    basis = state.basis
    state = state._replace(steps=state.steps + 1, searched=state.searched + 1)
    full = basis.size + plan.b > plan.m
    # Near the end a look costs less than a step too many; `worst` is NaN before the first.
    near = state.worst <= NEAR * jnp.maximum(limits.tol, limits.noise)
    look = full | near | (state.steps % every == 0)
    over = full | ((state.searched >= FIRST_LOOK) & (state.searched % often == 0))
    branch = jnp.where(state.phase == ITERATE, jnp.where(look, 1, 0), jnp.where(over, 2, 0))
    decide = [
        lambda s: (s, krylov.unchanged(s.basis)),
        lambda s: _look(s, limits, plan, full),
        lambda s: _judge(s, limits, plan, full),
    ]
    return jax.lax.switch(branch, decide, state)


# Many small operations, run rarely: optimizing them takes longer than they do.
_decide_apart = linalg.precise_jit(_decide, static_argnums=2, compiler_options={"xla_backend_optimization_level": 0})
_next_block, _move = jax.jit(krylov.next_block), linalg.precise_jit(krylov.move, donate_argnums=0)


def _wanted(values: Array, residuals: Array, basis: Basis, limits: _Limits, plan: _Plan) -> tuple[Array, Array, Array]:
    """(wanted `(m,)`, converged `(m,)`, is the wanted set settled?) of Ritz pairs."""
    index = jnp.arange(plan.m, dtype=jnp.int32)
    used = index < basis.size
    # Twice as strict as asked for: what a search leaves out when it locks a pair is not in later estimates.
    tol = jnp.maximum(limits.tol / 2, limits.noise) * basis.norm
    if plan.lifted:
        # Lifting divides by √λ: the residual in parameter space is larger by √(λ_max/λ).
        # That is ‖Aᵀ r‖ / √λ, and r points along the next basis vector q: ‖Aᵀ q‖² = q·K q is about that of the last one.
        last = jnp.max(jax.lax.dynamic_slice_in_dim(jnp.diag(basis.T), basis.size - plan.b, plan.b))
        along = jnp.clip(2 * last, 0, basis.norm)
        # Values lost in rounding have no meaningful image; they are not waited for.
        resolved = values > 10 * limits.noise * basis.norm
        residuals = residuals * jnp.where(resolved, jnp.sqrt(along / jnp.where(resolved, values, 1)), 1)
    converged = used & (residuals <= tol)
    if not plan.threshold:
        return index < plan.k, converged, basis.size >= plan.k
    wanted = used & (values + residuals > limits.above)
    return wanted, converged, jnp.any(used & ~wanted)


def _most_skew(limits: _Limits) -> Array:
    """How much |u·M v − v·M u| / ‖M‖ rounding, and the residuals that a search leaves out, can explain."""
    return jnp.maximum(100 * limits.noise, 10 * limits.tol)


def _norm(basis: Basis, values: Array) -> Array:
    """The largest |eigenvalue| seen so far."""
    used = jnp.arange(values.size, dtype=jnp.int32) < basis.size
    return jnp.maximum(basis.norm, jnp.max(jnp.where(used, jnp.abs(values), 0)))


def _look(state: _State, limits: _Limits, plan: _Plan, full: Array) -> tuple[_State, Change]:
    """Test convergence; begin the search, restart, or give up."""
    basis = state.basis
    values, S, residuals = krylov.ritz(basis)
    basis = basis._replace(norm=_norm(basis, values))
    state = state._replace(basis=basis)
    wanted, converged, settled = _wanted(values, residuals, basis, limits, plan)
    count = jnp.sum(wanted, dtype=jnp.int32)
    done = settled & jnp.all(~wanted | converged) & (count <= plan.k)
    # More than k values above the threshold: the first k are all that was asked for.
    crowded = (count > plan.k) & jnp.all(converged[: plan.k]) if plan.threshold else jnp.zeros((), bool)
    state = state._replace(
        converged=jnp.sum(wanted & converged, dtype=jnp.int32),
        worst=jnp.max(jnp.where(wanted & (jnp.arange(plan.m, dtype=jnp.int32) < basis.size), residuals, 0))
        / jnp.maximum(basis.norm, jnp.finfo(values.dtype).tiny),
    )

    def search(state: _State) -> tuple[_State, Change]:
        lock = jnp.minimum(count, plan.k)
        basis, change = krylov.compress(state.basis, values, S, lock, inject=True)
        lowest = values[jnp.maximum(lock - 1, 0)]
        return state._replace(
            basis=basis,
            phase=jnp.full_like(state.phase, SEARCH),
            lock=lock,
            lowest=lowest,
            iterated=state.steps,
            searches=jnp.zeros_like(lock),
            seen=jnp.full_like(lowest, -jnp.inf),
            odds=jnp.zeros_like(state.odds),
            starts=jnp.zeros_like(lock),
            searched=jnp.zeros_like(lock),
        ), change

    def restart(state: _State) -> tuple[_State, Change]:
        # Keep the wanted pairs and some of the next, more as pairs converge: they shield the others.
        room = plan.m - plan.b
        keep = jnp.minimum(plan.k + jnp.maximum((plan.m - plan.k) // 3, state.converged // 2), room - plan.b)
        basis, change = krylov.compress(state.basis, values, S, keep)
        return state._replace(basis=basis, restarts=state.restarts + 1), change

    def stop(state: _State) -> tuple[_State, Change]:
        return state._replace(phase=jnp.full_like(state.phase, STOPPED)), krylov.unchanged(state.basis)

    exhausted, skew = full & (state.restarts >= plan.restarts), basis.skew > _most_skew(limits) * basis.norm
    branch = jnp.where(crowded | skew, 3, jnp.where(done, 1, jnp.where(exhausted, 3, jnp.where(full, 2, 0))))
    return jax.lax.switch(branch, [lambda s: (s, krylov.unchanged(s.basis)), search, restart, stop], state)


def _judge(state: _State, limits: _Limits, plan: _Plan, full: Array) -> tuple[_State, Change]:
    """Look at a search: a missed eigenvalue sends it back to iterating; otherwise bound what is not in the list."""
    basis = state.basis
    values, _, _ = krylov.ritz(basis, state.lock)
    found = values[0]
    noise = jnp.maximum(limits.tol, limits.noise) * basis.norm
    missed = found > (limits.above if plan.threshold else state.lowest + noise)
    seen = jnp.maximum(state.seen, found)
    # The locked pairs are eigenpairs but for their residuals.
    coupling = state.worst * basis.norm * jnp.sqrt(state.lock.astype(seen.dtype))
    rounding = limits.noise * basis.norm
    goal = (limits.above if plan.threshold else state.lowest) - 2 * (coupling + rounding)
    numbers = unseen.candidates(seen, basis.norm, goal)
    # An ended search has excluded whatever lies above a number that it has excluded.
    before = jnp.min(jnp.where(state.numbers[None, :] <= numbers[:, None], state.odds[None, :], 0), axis=1)
    odds, starts = unseen.log_odds(basis, state.lock, plan.n, found, numbers, limits.noise)
    odds, starts = before + odds, state.starts + starts
    rest = jnp.min(jnp.where(unseen.excluded(odds, starts), numbers, jnp.inf))
    unseen_bound, rest = rest, jnp.where(basis.norm > 0, rest + coupling, seen)
    if plan.threshold:
        # A threshold asks for proof; there the limit is that of the iteration's restarts. Where the residuals of the locked
        # pairs stand in the way, no search helps.
        proven = rest + rounding < limits.above
        futile = (goal <= seen) & (unseen_bound + rounding < limits.above)
        enough = proven | futile | (full & (state.searches >= plan.restarts))
    else:
        tight = (rest < basis.norm) & (rest - seen <= SEARCH_MARGIN * jnp.abs(seen))
        spent = SEARCH_SHARE * (state.steps - state.iterated) > state.iterated
        enough = (rest <= state.lowest) | tight | spent

    def back(state: _State) -> tuple[_State, Change]:
        return state._replace(phase=jnp.full_like(state.phase, ITERATE)), krylov.unchanged(basis)

    def finish(state: _State) -> tuple[_State, Change]:
        return state._replace(phase=jnp.full_like(state.phase, DONE), seen=seen, rest=rest), krylov.unchanged(basis)

    def again(state: _State) -> tuple[_State, Change]:
        # The locked rows stay exactly as they are.
        kept = jnp.arange(plan.m, dtype=jnp.int32)
        S = jnp.where((kept[:, None] == kept[None, :]) & (kept[:, None] < state.lock), 1, 0).astype(basis.T.dtype)
        fresh, change = krylov.compress(basis, jnp.diag(basis.T), S, state.lock, inject=True)
        return state._replace(
            basis=fresh,
            searches=state.searches + 1,
            seen=seen,
            numbers=numbers,
            odds=odds,
            starts=starts,
            searched=jnp.zeros_like(state.searched),
        ), change

    branch = jnp.where(missed, 1, jnp.where(enough, 2, jnp.where(full, 3, 0)))
    return jax.lax.switch(branch, [lambda s: (s, krylov.unchanged(s.basis)), back, finish, again], state)


class _Pairs(NamedTuple):
    rows: Array  # (k, size) eigenvectors, of the operator itself
    values: Array  # (k,)
    residuals: Array  # (k,)
    within: Array  # (k,) residuals that bound the values' errors: those of the dual, where that was iterated
    wanted: Array  # (k,) bool
    norm: Array  # ()
    reachable: Array  # () the least residual over the norm that rounding allows
    rest: Array  # () bound on all eigenvalues not among these
    spent: int  # products


def _collect(operator: LinearOperator, scale: Array, state: _State, limits: _Limits, plan: _Plan, key: Array) -> _Pairs:
    """The pairs that an iteration has found, lifted."""
    traced = _checks.traced((state, operator))
    # Less than the whole basis where the run ended early: diagonalizing T is the longest wait at large m.
    used = plan.m if traced else min(plan.m, -(-max(int(state.basis.size), plan.k) // 64) * 64)
    rows, images, count, norm = _extract(state, limits, plan, used)
    if plan.threshold and not traced:
        rows, images = (a[: max(1, int(count))] for a in (rows, images))
    values, within = measured(rows, images)
    wanted = jnp.arange(rows.shape[0], dtype=jnp.int32) < count
    if not traced and int(state.phase) != DONE:
        # Stopped early: work on what has converged only.
        done = jnp.flatnonzero(within <= jnp.maximum(limits.tol, limits.noise) * norm)
        rows, images, values, within, wanted = (a[done] for a in (rows, images, values, within, wanted))
    if not plan.lifted or not rows.shape[0]:
        return _Pairs(rows, values, within, within, wanted, norm, limits.noise, state.rest, 0)
    lifted = lift_pairs(operator, scale, rows, images, values, norm, limits.noise, limits.tol, key)
    rows, values, residuals, within, most, spent = lifted
    # Lifting divides by √λ, and the rounding error of the residuals with it.
    smallest = jnp.min(jnp.where(wanted & (values > 10 * limits.noise * norm), values, norm))
    reachable, rest = limits.noise * jnp.sqrt(norm / smallest), jnp.maximum(state.rest, most)
    return _Pairs(rows, values, residuals, within, wanted, norm, reachable, rest, spent)


@partial(linalg.precise_jit, static_argnums=(2, 3))
def _extract(state: _State, limits: _Limits, plan: _Plan, used: int) -> tuple[Array, Array, Array, Array]:
    """(Ritz vectors `(k, n)` in rows, their products with M, how many of them are wanted, norm of M).

    `used`: at least as many as the rows of the basis in use.
    """
    basis, plan = state.basis, plan._replace(m=used)
    values, S, residuals = krylov.ritz(basis._replace(T=basis.T[:used, :used], C=basis.C[:, :used]))
    locked = (state.phase == SEARCH) | (state.phase == DONE)
    count = jnp.full((), plan.k, jnp.int32)
    if plan.threshold:
        wanted, _, _ = _wanted(values, residuals, basis, limits, plan)
        count = jnp.where(locked, state.lock, jnp.minimum(jnp.sum(wanted, dtype=jnp.int32), plan.k))
    S = S[:, : plan.k].T
    # After a search the wanted pairs are the locked rows; its own directions would only blur them.
    S = jnp.where(locked, jnp.eye(plan.k, used, dtype=S.dtype), S)
    # Pairs that an interrupted run has not reached have no vector: a residual that is NaN is never converged.
    S = jnp.where((jnp.arange(plan.k, dtype=jnp.int32) < basis.size)[:, None], S, jnp.nan)
    return S @ basis.vectors[:used], S @ basis.images[:used], count, _norm(basis, values)


def _counts(state: _State, b: int, started: int) -> dict[str, int]:
    """Products until the wanted pairs had converged; the others went into the search and the finish."""
    if _checks.traced(state):
        return {}
    iterated = int(state.iterated) if int(state.phase) in (SEARCH, DONE) else int(state.steps)
    return {"products_to_convergence": started + iterated * b}


# --- driven by the host -----------------------------------------------------------------------------------------------


def _drive(
    side: Any, state: _State, limits: _Limits, plan: _Plan, progress: Reporter | None, spent: int
) -> tuple[_State, bool]:
    """Run to the end a few steps at a time; returns the state and whether it was interrupted."""
    steps = max(1, 4 // plan.b)
    with HostLoop() as interrupt:
        while int(state.phase) < DONE and not interrupt.asked:
            began = time.perf_counter()
            if linalg.loops_are_slow():
                state = _step(side, state, limits, plan)
            else:
                state = _advance(side, state, limits, plan, jnp.asarray(steps, jnp.int32))
            if progress is not None:
                taken, worst = int(state.steps), float(state.worst)
                phase = "searching for missed eigenvalues" if int(state.phase) == SEARCH else "iterating"
                progress(Progress(spent + taken * plan.b, int(state.converged), plan.k, worst, phase))
            if time.perf_counter() - began < 0.1:
                steps = min(2 * steps, 64)
        return state, interrupt.asked
