/*-------------------------------------------------------------------------
 *
 * event.h
 *	  The event log, for the rest of coord.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_EVENT_H
#define COORD_EVENT_H

#include "postgres.h"

/* event_shared.c */
extern Size event_shmem_size(void);

/* event_log.c */
extern void event_housekeeping(void);

#endif							/* COORD_EVENT_H */
