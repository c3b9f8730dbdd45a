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

extern void event_publisher_enter(void);
extern int64 event_position_next(void);
extern int64 event_horizon(void);
extern int64 event_own_position(void);

#endif							/* COORD_EVENT_SHARED_H */
