/*-------------------------------------------------------------------------
 *
 * event_shared.h
 *	  Who is publishing, and how far the log may be read; see event_shared.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_EVENT_SHARED_H
#define COORD_EVENT_SHARED_H

#include "postgres.h"

#include "datatype/timestamp.h"

extern void event_publisher_enter(void);
extern int64 event_position_next(void);
extern int64 event_horizon(void);
extern int64 event_own_position(void);
extern int64 event_own_first(void);
extern void event_ask_for_rings(void);
extern void event_wait_begin(void);
extern bool event_wait_until(TimestampTz until);
extern void event_wait_end(void);
extern void event_wake_waiters(void);

#endif							/* COORD_EVENT_SHARED_H */
