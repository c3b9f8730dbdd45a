/*-------------------------------------------------------------------------
 *
 * saga.h
 *	  What the rest of coord may know of sagas.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_H
#define COORD_SAGA_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "base/doorbell.h"

/* How a turn ended, for the worker that asked for it. */
typedef struct SagaTurnResult
{
	int			sagas;			/* instances claimed */
	int			steps;			/* calls of user code */
	int			leftover;		/* entries not got to, at the front of "entries" */
	bool		fresh;			/* the first of them wants a turn of its own */
} SagaTurnResult;

typedef enum SagaTurnOutcome
{
	SAGA_TURN_DONE,
	SAGA_TURN_FAILED,			/* wait a little */
	SAGA_TURN_HALTED,			/* paused, disabled, or a copy */
	SAGA_TURN_GONE				/* no extension any more */
} SagaTurnOutcome;

extern void saga_register(void);

/* Participants of two-phase commits; see saga_participant.c and saga_session.c. */
typedef enum SagaVote
{
	SAGA_VOTE_NONE,				/* not yet */
	SAGA_VOTE_YES,
	SAGA_VOTE_NO
} SagaVote;

extern int64 saga_participant_define(const char *prepare, const char *commit, const char *undo,
									 const char *queue);
extern int64 saga_participant_start(int64 definition, Oid owner, int64 gtid,
									const char *participant, Jsonb *payload,
									pg_uuid_t *correlation_id);
extern void saga_participant_votes(const int64 *ids, int count, SagaVote *votes, char **reasons);
extern int	saga_participant_unfinished(int64 *ids, int count);
extern void saga_participant_decide(int64 id, bool commit, Oid role, const char *reason);
extern bool saga_drive(const int64 *ids, int count, TimestampTz vote_until);

/* Names; see saga_define.c. */
extern Oid	saga_name_owner(const char *name);
extern void saga_name_unknown(const char *name);

/* Queues; see saga_queue.c and saga_queue_config.c. */
extern Size queue_shmem_size(void);
extern void queue_look_again(void);
extern void queue_check_mine(const char *queue);
extern void queue_changed(const char *queue);
extern void queue_forget_all(void);
extern TimestampTz queue_notify(void);

/* Tasks of workers outside; see saga_task_fail.c. */
extern TimestampTz task_sweep(void);

/* For workers; see saga_turn.c. */
extern int	saga_turn_size(void);
extern SagaTurnOutcome saga_worker_turn(QueueEntry *entries, int count, SagaTurnResult *result);
extern int	saga_scan_due(TimestampTz mark_at, int64 mark_id, TimestampTz until,
						  QueueEntry *entries, int max,
						  TimestampTz *last_at, int64 *last_id);
extern TimestampTz saga_next_wake(TimestampTz after);
extern int	saga_scan_inbox(QueueEntry *entries, int max);
extern int	saga_scan_tasks(TimestampTz until, QueueEntry *entries, int max, TimestampTz *next);
extern int	saga_scan_priority(TimestampTz until, QueueEntry *entries, int max);
extern void saga_apply_requests(void);
extern void saga_housekeeping(void);

#endif							/* COORD_SAGA_H */
