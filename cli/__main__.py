"""Let ``python -m emdl.cli`` do what ``emdl`` does."""

import sys

from . import main

sys.exit(main())
