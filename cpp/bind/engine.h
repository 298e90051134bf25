#pragma once

#include "bind/arguments.h"
#include "bind/overlap.h"
#include "bind/step/engine.h"
