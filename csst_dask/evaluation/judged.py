"""Chips with truth and prediction, however the prediction was made."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from csst_dask.schema import N_CLASSES, density_class

FLOATS = ("log_star", "star_lower", "star_upper", "log_bright", "bright_lower", "bright_upper")
"""What a method need not give: NaN."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Truth and prediction of n chips; all arrays have one length.

    `Judged.build` fills what a method does not give.

    Raises
    ------
    ValueError
        If lengths differ, a true star count is unknown, a class is out of range or bounds are the wrong way
        round.
    """

    band: NDArray[np.str_]
    field: NDArray[np.str_]
    """Sky field; chips of one field err together."""
    n_star: NDArray[np.int64]
    """True stars on the chip."""
    n_bright: NDArray[np.int64]
    """True bright stars on the chip, -1 where unknown."""
    class_probability: NDArray[np.float64]
    """(n, 6); NaN where the method gives none."""
    density_class: NDArray[np.int64]
    """Predicted class, 0 to 5."""
    log_star: NDArray[np.float64]
    """Predicted log10(1 + stars), dex; NaN where the method gives none."""
    star_lower: NDArray[np.float64]
    """Lower bound of the stars on the chip; NaN where there is none."""
    star_upper: NDArray[np.float64]
    """Upper bound; may be infinite."""
    log_bright: NDArray[np.float64]
    """Predicted log10(1 + bright stars), dex; NaN where bypassed."""
    bright_lower: NDArray[np.float64]
    """Lower bound of the bright stars on the chip; NaN where there is none."""
    bright_upper: NDArray[np.float64]
    """Upper bound; may be infinite."""
    route: NDArray[np.str_]
    """One of `schema.ROUTES`; empty where the method gives none."""

    def __post_init__(self) -> None:
        n = len(self.n_star)
        for entry in fields(self):
            found = getattr(self, entry.name).shape
            wanted = (n, N_CLASSES) if entry.name == "class_probability" else (n,)
            if found != wanted:
                raise ValueError(f"{entry.name} has shape {found}, n_star {n} chips: expected {wanted}; align them")
        if n and self.n_star.min() < 0:
            raise ValueError(f"{(self.n_star < 0).sum()} of {n} chips have no true star count; leave them out")
        if n and not (self.density_class.min() >= 0 and self.density_class.max() < N_CLASSES):
            raise ValueError(
                f"predicted classes run from {self.density_class.min()} to {self.density_class.max()}; expected 0 to "
                f"{N_CLASSES - 1}: leave out chips without a prediction"
            )
        for of in ("star", "bright"):
            if crossed := int((getattr(self, f"{of}_lower") > getattr(self, f"{of}_upper")).sum()):
                raise ValueError(f"{crossed} of {n} chips have {of}_lower above {of}_upper; were they swapped?")

    @classmethod
    def build(
        cls,
        *,
        band: ArrayLike,
        n_star: ArrayLike,
        density_class: ArrayLike,
        field: ArrayLike | None = None,
        n_bright: ArrayLike | None = None,
        class_probability: ArrayLike | None = None,
        route: ArrayLike | None = None,
        **floats: ArrayLike,
    ) -> Judged:
        """Judged chips of any arrays, with NaN, -1 or '' for what is left out.

        Parameters
        ----------
        band, n_star, density_class, field, n_bright, class_probability, route : array_like
            As the fields of the class.
        **floats : array_like
            Any of `FLOATS`.

        Returns
        -------
        Judged
        """
        if unknown := set(floats) - set(FLOATS):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; expected any of {', '.join(FLOATS)}")
        n = len(np.asarray(n_star))
        bright = np.full(n, -1) if n_bright is None else n_bright
        chances = np.full((n, N_CLASSES), np.nan) if class_probability is None else class_probability
        nothing, empty = np.full(n, np.nan), [""] * n
        return cls(
            n_star=np.asarray(n_star, np.int64),
            n_bright=np.asarray(bright, np.int64),
            class_probability=np.asarray(chances, np.float64),
            density_class=np.asarray(density_class, np.int64),
            band=_words(band),
            field=_words(empty if field is None else field),
            route=_words(empty if route is None else route),
            **{name: np.asarray(floats.get(name, nothing), np.float64) for name in FLOATS},
        )

    @classmethod
    def from_datasets(cls, scalars: xr.Dataset, predictions: xr.Dataset) -> Judged:
        """The chips of a store that have truth and a prediction.

        Parameters
        ----------
        scalars : xarray.Dataset
            Per-chip variables of a store: ``band``, ``n_star`` and, where it has them, ``field`` and ``n_bright``.
        predictions : xarray.Dataset
            Over the same chips in the same order: ``density_class`` and whatever else the method gives.

        Returns
        -------
        Judged
            In chip order.
        """
        if scalars.sizes["chip"] != predictions.sizes["chip"]:
            raise ValueError(
                f"{scalars.sizes['chip']} chips but predictions of {predictions.sizes['chip']}; select the same chips"
            )
        keep = np.flatnonzero((scalars["n_star"].values >= 0) & (predictions["density_class"].values >= 0))

        def column(source: xr.Dataset, names: tuple[str, ...]) -> dict[str, NDArray]:
            return {name: source[name].values[keep] for name in names if name in source.variables}

        return cls.build(
            **column(scalars, ("band", "n_star", "field", "n_bright")),
            **column(predictions, ("density_class", "class_probability", "route", *FLOATS)),
        )

    def __len__(self) -> int:
        return len(self.n_star)

    def take(self, rows: ArrayLike) -> Judged:
        """Some chips, by place or as a bool array."""
        rows = np.asarray(rows)
        rows = rows if rows.dtype == bool else rows.astype(np.int64)
        return Judged(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})

    @property
    def true_class(self) -> NDArray[np.int64]:
        """Class 0 to 5 of the true star count."""
        return density_class(self.n_star).astype(np.int64)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the true one."""
        return self.true_class == self.density_class

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the predicted class; NaN where the method gives none."""
        return np.take_along_axis(self.class_probability, self.density_class[:, None], axis=1)[:, 0]

    @property
    def true_log_star(self) -> NDArray[np.float64]:
        """log10(1 + n_star), dex."""
        return np.log10(1.0 + self.n_star)

    @property
    def true_log_bright(self) -> NDArray[np.float64]:
        """log10(1 + n_bright), dex; NaN where unknown."""
        return np.log10(np.where(self.n_bright < 0, np.nan, 1.0 + self.n_bright))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Whether bright stars were counted and their true number is known."""
        return np.isfinite(self.log_bright) & (self.n_bright >= 0)


def _words(values: ArrayLike) -> NDArray[np.str_]:
    """Plain strings of any array of strings."""
    return np.array(np.asarray(values).tolist(), dtype=str)
