"""Records: frozen dataclasses that are JAX pytrees.

Arrays are leaves; everything else is `static()` and compared by value, so that two records built separately from equal
settings share one compilation.
"""

import dataclasses
import inspect
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A record field that is part of the record's type for JAX (hashable, compared by value), not an array."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def record(cls: type[T]) -> type[T]:
    """Class decorator: frozen dataclass and pytree; fields are array leaves unless declared with `static()`."""
    fields = inspect.get_annotations(cls)
    is_static = {
        name: isinstance(cls.__dict__.get(name), dataclasses.Field) and "static" in cls.__dict__[name].metadata
        for name in fields
    }
    # Equality of arrays is not a bool: only records without array fields compare (and hash) by value.
    # A class that writes its own __repr__ keeps it.
    made = dataclasses.dataclass(
        frozen=True, eq=all(is_static.values()), repr="__repr__" not in cls.__dict__ and not _inherits_repr(cls)
    )(cls)
    data = [name for name in is_static if not is_static[name]]
    meta = [name for name in is_static if is_static[name]]

    def flatten(instance: T) -> Any:
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in data]
        return leaves, tuple(getattr(instance, name) for name in meta)

    def unflatten(values: Any, leaves: Any) -> T:
        # Not through __init__: its checks are for users, and JAX puts placeholders where arrays were.
        instance = object.__new__(made)
        for name, value in zip((*data, *meta), (*leaves, *values), strict=True):
            object.__setattr__(instance, name, value)
        return instance

    jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
    return made


def _inherits_repr(cls: type) -> bool:
    return any("__repr__" in base.__dict__ for base in cls.__mro__[1:-1])
