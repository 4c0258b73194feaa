// Compiled with the flags of this instruction set: see setup.py.
#include "cpu_noise_impl.h"
