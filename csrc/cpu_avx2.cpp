// Compiled with the flags of this instruction set: see setup.py.
#include <type_traits>

#include "cpu_kernels.h"
