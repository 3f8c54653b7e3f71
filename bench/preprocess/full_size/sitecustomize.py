"""Python reads this first in every process of a server that has this folder in its path: JPEGs are then decoded at full
size, and all else is the same program.
"""

import tessera_runtime.preprocess.image as stage

stage.SPARE = 1e6
