"""The command `python -m tracelift_lib.group_building`."""

import sys

from tracelift_lib.group_building.builder import main

sys.exit(main())
