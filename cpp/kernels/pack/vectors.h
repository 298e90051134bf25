// The vectors that kernels are written in.
#pragma once

#include "kernels/pack/convert.h"
#include "kernels/pack/lane_loops.h"
#include "kernels/pack/lane_sums.h"
#include "kernels/pack/masks.h"
#include "kernels/pack/memory.h"
#include "kernels/pack/pack.h"
