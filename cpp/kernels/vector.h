// The vectors that kernels are written in.
#pragma once

#include "kernels/lane_loops.h"
#include "kernels/lane_sums.h"
#include "kernels/pack.h"
#include "kernels/pack_convert.h"
#include "kernels/pack_masks.h"
#include "kernels/pack_memory.h"
