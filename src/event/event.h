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

#include "base/doorbell.h"

/* event_shared.c */
extern Size event_shmem_size(void);

/* subscription_turn.c */
extern int	subscription_round(QueueEntry *entries, int max);
extern bool subscription_work(int64 id, bool *again);
extern int	subscription_mine(int64 *ids, int max);
extern bool subscription_session_turn(int64 id, int *handled);

/* subscription_store.c */
extern void subscription_housekeeping(void);

/* subscription_poll.c */
extern TimestampTz subscription_ready_at(const char *name);
extern void subscription_check_pollable(const char *name);

/* event_log.c */
extern void event_housekeeping(void);

#endif							/* COORD_EVENT_H */
