"""`python -m keepnorm` is the command `keepnorm`."""

import sys

from keepnorm.cli import main

sys.exit(main())
