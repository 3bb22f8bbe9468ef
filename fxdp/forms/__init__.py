"""Forms: sums over samples, split into per-sample terms.

A form holds the operands of a sum over samples and computes three things: each sample's own term,
the squared norm of that, and the sum again with a factor for each sample (the clipped sum).
It knows nothing of graphs: its methods are ordinary torch functions, which the passes trace into
one. Norms are squared because squares add; they are computed in float32 at least.

A factor of 0 removes a sample altogether, NaN and infinity included, so that padding and
samples without a finite gradient add nothing.
"""

from fxdp.forms.conv import Conv
from fxdp.forms.outer import Outer
from fxdp.forms.reduce import Reduce
from fxdp.forms.scatter import Scatter
from fxdp.forms.segmented import Segmented
from fxdp.forms.tied import Tied, joined

Form = Outer | Conv | Scatter | Reduce | Segmented

__all__ = ["Conv", "Form", "Outer", "Reduce", "Scatter", "Segmented", "Tied", "joined"]
