"""`python -m keepnorm` is the command `keepnorm`."""

import sys

from keepnorm.cli.main import main

sys.exit(main())
