/*-------------------------------------------------------------------------
 *
 * saga_queue.h
 *	  Queues, for those who claim from them and give back.
 *
 * What the engine needs of queues is in saga_task.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_QUEUE_H
#define COORD_SAGA_QUEUE_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "base/check.h"

/* Where a task is in its queue. */
typedef struct QueueKey
{
	int64		rank;
	int64		position;
	int64		id;
} QueueKey;

/* A queue as the tables have it, and whose it is; see saga_queue_config.c. */
typedef struct QueueConfig
{
	char		name[CHECK_NAME_MAX + 1];	/* hash key */
	uint32		serial;			/* of the place in shared memory, when read */
	bool		paused;
	int			max_running;	/* 0: no limit */
	double		rate_limit;		/* per second; 0: none */
	int			nroles;			/* whose it is */
	Oid		   *roles;
	int			ngrants;		/* who may use it, and who gave it to him */
	Oid		   *grantees;
	Oid		   *grantors;
} QueueConfig;

/* Whose tasks a role may claim and end. */
typedef struct QueueAccess
{
	bool		all;
	int			nothers;		/* besides those it is a member of: these roles' */
	Oid		   *others;
} QueueAccess;

/* The place of a queue in shared memory. */
typedef struct QueueSlot QueueSlot;

/* One reading of a queue by a claim. */
typedef struct QueueReading
{
	QueueSlot  *slot;			/* NULL: there is no place for the queue */
	Oid			role;
	QueueKey	from;			/* tasks up to here need not be looked at */
	uint64		generation;
} QueueReading;

/* saga_queue.c */
extern Size queue_shmem_size(void);
extern QueueSlot *queue_slot(const char *queue);
extern uint32 queue_serial(const char *queue);

extern void queue_reading_begin(QueueReading *reading, const char *queue, Oid role);
extern void queue_reading_end(QueueReading *reading, const QueueKey *keys, int count, bool all);
extern void queue_locked(const char *queue, Oid role, const QueueKey *key);

extern bool queue_take_due(QueueSlot *slot, Oid role, TimestampTz now);
extern void queue_swept(const char *queue, TimestampTz next, const QueueKey *first,
						TimestampTz available, int64 us);
extern void queue_freed_at_commit(const char *queue);
extern void queue_config_changed_at_commit(const char *queue);

extern int	queue_take_tokens(QueueSlot *slot, double rate, int wanted, int64 *wait_us);
extern void queue_return_tokens(QueueSlot *slot, int count);
extern QueueKey queue_highest_claimed(QueueSlot *slot);
extern void queue_set_highest_claimed(QueueSlot *slot, const QueueKey *key);

extern void queue_prepare_to_wait(QueueSlot *slot);
extern void queue_wait(QueueSlot *slot, TimestampTz until, bool due);
extern void queue_end_wait(QueueSlot *slot);

/* saga_queue_config.c */
extern QueueConfig *queue_config(const char *queue);
extern QueueConfig *queue_config_or_error(const char *queue);
extern void queue_access(const QueueConfig *config, QueueAccess *access);
extern bool queue_may_act(const char *queue, Oid owner);
extern void queue_lock(const char *queue, bool lock);

/* saga_claim.c */
extern bool queue_has_task(const char *queue, int64 *wait_us);

/* saga_lease.c */
extern void task_sweep_queue(const char *queue);

#endif							/* COORD_SAGA_QUEUE_H */
