// Compiled with the flags of this instruction set: see setup.py.
#include "cpu_kernels.h"
