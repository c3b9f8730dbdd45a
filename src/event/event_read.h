/*-------------------------------------------------------------------------
 *
 * event_read.h
 *	  Reading events; see event_read.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_EVENT_READ_H
#define COORD_EVENT_READ_H

#include "postgres.h"

extern void event_read_patterns(Datum patterns, Datum *exact, Datum *prefixes, bool *all);

#endif							/* COORD_EVENT_READ_H */
