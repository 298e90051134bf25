"""The figures of the gallery, by name; `fusedstep.apps.gallery` says what each module of a figure has."""

from fusedstep.apps.gallery import FIGURES, Drawable, write, write_index

__all__ = ["FIGURES", "Drawable", "write", "write_index"]
