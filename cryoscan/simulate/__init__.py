"""Forward physics: atoms to density, written twice.

`density` sums Gaussians and is what the DateDB is built with; `density_from_form_factors`
reaches the same density by another road, so that each checks the other. Both mean by
"resolution" what ChimeraX ``molmap`` does: an isolated atom is a Gaussian of
sigma = 0.225 × resolution that holds the atom's number of electrons.
`atoms_from_trace` completes chains of which only the C-alpha atoms are known.
"""

from cryoscan.simulate.density import density
from cryoscan.simulate.fourier import density_from_form_factors
from cryoscan.simulate.trace import atoms_from_trace, is_trace

__all__ = ["atoms_from_trace", "density", "density_from_form_factors", "is_trace"]
