"""`python -m scripts.soaking`, which `scripts/soak` runs."""

import sys

from scripts.soaking.main import main

sys.exit(main())
