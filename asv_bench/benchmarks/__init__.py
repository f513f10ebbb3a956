"""What asv discovers. A class that compares with a peer measures once; its many `track_*` read that record."""

import sys
from pathlib import Path

# asv imports this folder alone, under the name `benchmarks`; what the benchmarks share is the package asv_bench around it.
# Were asv given that whole package, it would import every peer to look for benchmarks there.
_ROOT = str(Path(__file__).parent.parent.parent)
if _ROOT not in sys.path:
    sys.path.append(_ROOT)
