/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  The time that coord decides by.
 *
 * Whatever is due, expires or is delayed is judged by clock_now().  Normally
 * that is the system clock; a superuser can pin it with coord.test_now so that
 * tests step through retries and deadlines without sleeping.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/guc.h"

PG_FUNCTION_INFO_V1(coord_internal_now);

bool
clock_is_set(void)
{
	return guc_test_now_value != 0;
}

/* The current time, or coord.test_now where that is set. */
TimestampTz
clock_now(void)
{
	if (guc_test_now_value != 0)
		return guc_test_now_value;
	return GetCurrentTimestamp();
}

/* Not set by anybody, and going on while the machine is suspended. */
#ifdef CLOCK_BOOTTIME
#define STEADY_CLOCK CLOCK_BOOTTIME
#else
#define STEADY_CLOCK CLOCK_MONOTONIC
#endif

/*
 * Microseconds of a clock that does not jump, the same in all processes until the
 * machine is started anew; or coord.test_now where that is set.
 */
int64
clock_steady_us(void)
{
	struct timespec now;

	if (guc_test_now_value != 0)
		return guc_test_now_value;
	(void) clock_gettime(STEADY_CLOCK, &now);
	return now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

/*
 * The length of a finite interval in microseconds, a month being 30 days, held
 * within a thousand years.
 */
int64
clock_interval_us(const Interval *interval)
{
	double		us = interval->time +
		(interval->day + 30.0 * interval->month) * USECS_PER_DAY;
	double		limit = 365000.0 * USECS_PER_DAY;

	return (int64) Max(-limit, Min(limit, us));
}

Datum
coord_internal_now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(clock_now());
}
