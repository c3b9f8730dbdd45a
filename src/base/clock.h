/*-------------------------------------------------------------------------
 *
 * clock.h
 *	  The time that coord decides by.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_CLOCK_H
#define COORD_CLOCK_H

#include "datatype/timestamp.h"

extern TimestampTz clock_now(void);
extern bool clock_is_set(void);
extern int64 clock_steady_us(void);
extern int64 clock_interval_us(const Interval *interval);

#endif							/* COORD_CLOCK_H */
