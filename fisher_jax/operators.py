"""Symmetric linear operators: a size, a dtype and a product. Solvers see nothing else."""

import itertools
import sys
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fisher_jax import _checks, linalg
from fisher_jax._record import record, static

Array = jax.Array


class LinearOperator:
    """A symmetric matrix M known through its products. Subclasses give `size`, `dtype` and `matmat`."""

    # Known to have no negative eigenvalue; lets solvers report exact zeros and one-sided bounds.
    psd: bool = False

    # For M = Aᵀ A the operator A Aᵀ, which has the same nonzero eigenvalues; None without a factor.
    dual: Any = None

    # Vectors that a product likes to have at a time.
    width: int = 1

    @property
    def size(self) -> int:
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def __repr__(self) -> str:
        dual = "" if self.dual is None else f", dual {self.dual.size}"
        return f"{type(self).__name__}(size {self.size}{dual}, {jnp.dtype(self.dtype).name})"

    def matmat(self, V: Array) -> Array:
        """`M V`: `(size, k) -> (size, k)`."""
        raise NotImplementedError

    def __matmul__(self, V: Any) -> Array:
        """`M @ v` for `v` of shape `(size,)` or `(size, k)`."""
        return product(self, V, self.size, apply)

    def __neg__(self) -> "SignedOperator":
        """`−M`: its largest eigenvalues are the smallest of M."""
        return SignedOperator(self, jnp.asarray(-1, self.dtype))

    def dense(self) -> Array:
        """The explicit matrix `(size, size)`, for small problems."""
        require_room(type(self).__name__ + ".dense", self.size, self.size, self.dtype)
        return apply(self, jnp.eye(self.size, dtype=self.dtype))

    def prepared(self, columns: int, products: float) -> "LinearOperator":
        """An equal operator for so many products in blocks of `columns`: it may keep what each would compute again."""
        return self

    def reduced(self, precision: str) -> "LinearOperator":
        """The same with matrix products in "tensorfloat32" or "bfloat16", sums in float32, on hardware that has them."""
        return ReducedOperator(self, precision)

    def trace(self) -> Array:
        """Sum of the eigenvalues, here from the explicit matrix; operators with structure do better."""
        return jnp.trace(self.dense())

    def as_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` over host vectors; every product runs the compiled one here."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def matmat(V: np.ndarray) -> np.ndarray:
            return np.asarray(self @ jnp.asarray(V, self.dtype))

        return ScipyOperator(self.shape, matvec=matmat, matmat=matmat, rmatvec=matmat, dtype=np.dtype(self.dtype))  # type: ignore[call-arg]


@linalg.precise_jit
def apply(operator: LinearOperator, V: Array) -> Array:
    """The compiled product every caller shares: traced once per operator structure and number of columns."""
    return operator.matmat(V)


def product(operator: Any, V: Any, rows: int, compiled: Any) -> Array:
    """Check the shape of V, let a vector pass as one column, run `compiled(operator, columns)`."""
    V = jnp.asarray(V, operator.dtype)
    if V.ndim not in (1, 2) or V.shape[0] != rows:
        raise _checks.fail(
            type(operator).__name__, f"V has shape {V.shape}", f"give a vector ({rows},) or columns ({rows}, k)"
        )
    image = compiled(operator, V[:, None] if V.ndim == 1 else V)
    if jax.default_backend() == "cpu" and not _checks.traced(image):
        # Several programs with collectives in flight can starve each other of threads on virtual CPU devices.
        jax.block_until_ready(image)
    return image[:, 0] if V.ndim == 1 else image


def require_room(where: str, rows: int, columns: int, dtype: Any) -> None:
    """Refuse an explicit array that takes more than half of the memory that is free now."""
    wanted, free = rows * columns * jnp.dtype(dtype).itemsize, linalg.free_memory()
    if wanted > free / 2:
        raise _checks.fail(
            where,
            f"a {rows} x {columns} array needs {wanted / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free",
            "use products (fj.eigsh with fj.Lanczos()) or restrict with where=",
        )


def _check_dtype(where: str, dtype: Any) -> None:
    if dtype not in (jnp.float32, jnp.float64):
        raise _checks.fail(where, f"dtype {jnp.dtype(dtype).name} is not supported", "give float32 or float64")


def _narrowed(where: str, entries: Any) -> Array:
    """On the device: float64 as float32 unless x64 is enabled, refused where all of it would vanish or overflow there."""
    with np.errstate(over="ignore"):
        placed = jnp.asarray(entries)
    if placed.dtype != entries.dtype and entries.size:
        largest, limits = float(np.max(np.abs(entries))), jnp.finfo(placed.dtype)
        if 0 < largest < float(limits.tiny) or float(limits.max) < largest < np.inf:
            remedy = 'enable x64: jax.config.update("jax_enable_x64", True), or scale the matrix'
            raise _checks.fail(where, f"entries of at most {largest:.1e} leave the range of {placed.dtype.name}", remedy)
    return placed


@record
class MatrixOperator(LinearOperator):
    """An explicit symmetric matrix `(n, n)` as an operator.

    Args:
        matrix: NumPy or JAX.
        psd: true if no eigenvalue is negative.

    Raises:
        ArgumentError: the matrix is not square or not symmetric to rounding.
    """

    matrix: Array
    psd: bool = static(default=False)

    def __init__(self, matrix: Any, psd: bool = False):
        matrix = matrix if isinstance(matrix, jax.Array) else np.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise _checks.fail("MatrixOperator", f"matrix has shape {matrix.shape}", "give a square matrix")
        _check_dtype("MatrixOperator", matrix.dtype)
        matrix = _narrowed("MatrixOperator", matrix)
        if not _checks.traced(matrix) and matrix.size:
            scale, skew = map(float, _scale_and_skew(matrix))
            if not np.isfinite(scale):
                _checks.finite("MatrixOperator", "matrix", matrix, "give a matrix without NaN")
            if not skew <= 1000 * float(jnp.finfo(matrix.dtype).eps) * scale:
                raise _checks.fail("MatrixOperator", f"matrix - matrixᵀ reaches {skew:.2g}", "give a symmetric matrix")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "psd", psd)

    @property
    def size(self) -> int:
        return self.matrix.shape[0]

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def matmat(self, V: Array) -> Array:
        return self.matrix @ V

    def dense(self) -> Array:
        return self.matrix


def symmetric(matrix: Array) -> MatrixOperator:
    """The operator of a matrix that is symmetric by construction: to see that takes about as long as to build it."""
    operator = object.__new__(MatrixOperator)
    object.__setattr__(operator, "matrix", matrix)
    object.__setattr__(operator, "psd", False)
    return operator


@jax.jit
def _scale_and_skew(matrix: Array) -> tuple[Array, Array]:
    return jnp.max(jnp.abs(matrix)), jnp.max(jnp.abs(matrix - matrix.T))


@record
class ScaledOperator(LinearOperator):
    """`scale · M`: solvers bring ‖M‖ near one, where squares neither vanish nor overflow."""

    operator: LinearOperator
    scale: Array  # () a power of two, so that scaling rounds nothing

    @property
    def psd(self) -> bool:  # type: ignore[override]
        return self.operator.psd

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    def matmat(self, V: Array) -> Array:
        return self.operator.matmat(V) * self.scale


@record
class ReducedOperator(LinearOperator):
    """An operator whose matrix products run at reduced precision; a CPU has none and computes as always."""

    operator: Any
    precision: str = static()

    @property
    def psd(self) -> bool:  # type: ignore[override]
        return self.operator.psd

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.operator.width

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    @property
    def dual(self) -> Any:  # type: ignore[override]
        return None if self.operator.dual is None else ReducedOperator(self.operator.dual, self.precision)

    def matmat(self, V: Array) -> Array:
        with jax.default_matmul_precision(self.precision):
            return self.operator.matmat(V)

    def from_dual(self, U: Array) -> Array:
        with jax.default_matmul_precision(self.precision):
            return self.operator.from_dual(U)


@record
class SignedOperator(LinearOperator):
    """`M` or `−M`: one compiled program for both ends of a spectrum."""

    operator: LinearOperator
    sign: Array  # () 1 or −1

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    def matmat(self, V: Array) -> Array:
        return self.operator.matmat(V) * self.sign

    def dense(self) -> Array:
        return self.operator.dense() * self.sign

    def trace(self) -> Array:
        return self.operator.trace() * self.sign


@record
class SparseOperator(LinearOperator):
    """A sparse symmetric matrix as an operator: the entries, sorted by rows, on the device.

    Args:
        matrix: SciPy sparse matrix or array of any format, or JAX `BCOO`.
        psd: true if no eigenvalue is negative.

    Raises:
        ArgumentError: the matrix is not square, not finite or not symmetric to rounding; `BCOO` inside jit.
    """

    entries: Array  # (stored,)
    rows: Array  # (stored,) ascending
    columns: Array  # (stored,)
    length: int = static()
    psd: bool = static(default=False)

    def __init__(self, matrix: Any, psd: bool = False):
        import scipy.sparse

        where = "SparseOperator"
        if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
            raise _checks.fail(where, f"matrix has shape {matrix.shape}", "give a square matrix")
        _check_dtype(where, matrix.dtype)
        if not scipy.sparse.issparse(matrix):
            if _checks.traced(matrix):
                raise _checks.fail(where, "matrix is traced", "make the operator outside jit; it can be an argument")
            entries, indices = np.asarray(matrix.data), np.asarray(matrix.indices)
            # Those that pad a BCOO point past the end.
            kept = (indices < matrix.shape[0]).all(axis=1)
            matrix = scipy.sparse.coo_array((entries[kept], tuple(indices[kept].T)), matrix.shape)
        # The rows come out sorted, and what is stored twice for one place is added up.
        matrix = scipy.sparse.coo_array(scipy.sparse.csr_array(matrix))
        _checks.finite(where, "matrix", matrix.data, "give a matrix without NaN")
        scale, skew = (np.max(np.abs(a.data), initial=0) for a in (matrix, matrix - matrix.T))
        if skew > 1000 * float(jnp.finfo(matrix.dtype).eps) * scale:
            raise _checks.fail(where, f"matrix - matrixᵀ reaches {skew:.2g}", "give a symmetric matrix")
        object.__setattr__(self, "entries", _narrowed(where, matrix.data))
        object.__setattr__(self, "rows", jnp.asarray(matrix.row, jnp.int32))
        object.__setattr__(self, "columns", jnp.asarray(matrix.col, jnp.int32))
        object.__setattr__(self, "length", matrix.shape[0])
        object.__setattr__(self, "psd", psd)

    @property
    def size(self) -> int:
        return self.length

    @property
    def dtype(self) -> Any:
        return self.entries.dtype

    def matmat(self, V: Array) -> Array:
        # Faster than BCOO, which does not know that its rows are sorted.
        return jax.ops.segment_sum(self.entries[:, None] * V[self.columns], self.rows, self.length, indices_are_sorted=True)


# SciPy operators by number, while they exist. A compiled program holds the number as an argument: all operators of one size
# share it, and it keeps none of them alive.
_ON_HOST: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


@record
class HostOperator(LinearOperator):
    """A SciPy `LinearOperator`: each product goes through the host, which is slow, and on accelerators very slow.

    Raises:
        ArgumentError: the operator is not square.
    """

    number: Array  # () of the operator in _ON_HOST
    length: int = static()
    kind: str = static()

    def __init__(self, operator: Any):
        if operator.shape[0] != operator.shape[1]:
            raise _checks.fail("HostOperator", f"operator has shape {operator.shape}", "give a square operator")
        _check_dtype("HostOperator", operator.dtype)
        number = next(_NUMBERS)
        _ON_HOST[number] = operator
        # Not a field: no part of what JAX sees.
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "number", jnp.asarray(number, jnp.int32))
        object.__setattr__(self, "length", operator.shape[0])
        object.__setattr__(self, "kind", jax.dtypes.canonicalize_dtype(operator.dtype).name)

    @property
    def size(self) -> int:
        return self.length

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.kind)

    def matmat(self, V: Array) -> Array:
        # As bits: the callback may run in a thread without x64, where JAX would round float64.
        bits = jax.lax.bitcast_convert_type(V, jnp.uint32)
        like = jax.ShapeDtypeStruct(bits.shape, bits.dtype)
        image = jax.pure_callback(_multiply_on_host, like, self.number, bits, vmap_method="sequential")
        return jax.lax.bitcast_convert_type(image, V.dtype)


def _multiply_on_host(number: Any, bits: Any) -> np.ndarray:
    bits = np.ascontiguousarray(bits)
    V = bits.view(np.float32) if bits.ndim == 2 else bits.view(np.float64)[..., 0]
    operator = _ON_HOST[int(number)]
    # Vector by vector: that is all SciPy's own solvers ask of an operator.
    image = np.stack([np.asarray(operator.matvec(v), V.dtype) for v in V.T], axis=1)
    return image.view(np.uint32).reshape(bits.shape)


@record
class FunctionOperator(LinearOperator):
    """A symmetric operator given by its product.

    Args:
        function: JAX function `(size, k) -> (size, k)`, symmetric and linear; arrays bound with
            `jax.tree_util.Partial(f, arrays)` are passed to the compiled program instead of being baked into it.
        size: number of rows.
        dtype: of the vectors; float32 unless said.
        psd: true if no eigenvalue is negative.
    """

    function: Any
    length: int = static()
    kind: str = static()
    psd: bool = static(default=False)

    def __init__(self, function: Any, size: int, dtype: Any = jnp.float32, psd: bool = False):
        if not isinstance(size, int):
            size = _checks.integer("FunctionOperator", "size", size, 1)
        _check_dtype("FunctionOperator", jnp.dtype(dtype))
        object.__setattr__(self, "function", function if isinstance(function, Partial) else Partial(function))
        object.__setattr__(self, "length", size)
        object.__setattr__(self, "kind", jnp.dtype(dtype).name)
        object.__setattr__(self, "psd", psd)

    @property
    def size(self) -> int:
        return self.length

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.kind)

    def matmat(self, V: Array) -> Array:
        return self.function(V)


def as_operator(where: str, matrix: Any) -> LinearOperator:
    """`matrix` as a `LinearOperator`: one already, or something symmetric that stands for a matrix.

    Args:
        where: who asks, for the message.
        matrix: `LinearOperator`; square array (NumPy, JAX); sparse matrix (SciPy, JAX `BCOO`); SciPy `LinearOperator`, whose
            products go through the host.

    Raises:
        ArgumentError: none of these; complex, integer or half-precision entries.
    """
    if isinstance(matrix, LinearOperator):
        return matrix
    if isinstance(matrix, (jax.Array, np.ndarray)):
        return MatrixOperator(matrix)
    if _is(matrix, "scipy.sparse", "sparray", "spmatrix") or _is(matrix, "jax.experimental.sparse", "BCOO"):
        return SparseOperator(matrix)
    if _is(matrix, "scipy.sparse.linalg", "LinearOperator"):
        return HostOperator(matrix)
    raise _checks.fail(
        where,
        f"operator is a {type(matrix).__name__}",
        "give fj.fisher(...), a symmetric array or sparse matrix, or fj.FunctionOperator(f, size) for a function",
    )


def _is(value: Any, module: str, *names: str) -> bool:
    """Is `value` of a class of a module that may not be loaded? It can only be if the module is."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, tuple(getattr(loaded, name) for name in names))
