/*-------------------------------------------------------------------------
 *
 * doorbell.h
 *	  Shared memory: who works where, and what is to be done next.
 *
 * See doorbell.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_DOORBELL_H
#define COORD_DOORBELL_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"

#define COORD_MAX_DATABASES 128
#define COORD_MAX_WORKERS 64
#define COORD_MAX_SUSPECTS 64
#define COORD_WAIT_BUCKETS 64
#define COORD_QUEUE_SIZE 8192

/* A call that takes longer than this is not waited for by what is due. */
#define COORD_STALL_US 50000

/* Entries worth a commit of their own. */
#define COORD_ENOUGH_FOR_A_TURN 16

typedef enum WorkKind
{
	WORK_SAGA,					/* an instance to look at */
	WORK_TASK,					/* a task to carry out */
	WORK_SUBSCRIPTION			/* events to handle */
} WorkKind;

/* Something due. */
typedef struct QueueEntry
{
	int64		id;
	uint32		sequence;		/* arrival, for order within a priority */
	int32		priority;
	Oid			owner;
	WorkKind	kind;
} QueueEntry;

#define COORD_HOLDS 64

/*
 * An instance with very many items should not be looked at for each of them:
 * until then rings for it are put off.  A place is found by the id's hash and
 * taken by whoever comes last.
 */
typedef struct Hold
{
	Oid			database;
	int64		id;
	TimestampTz until;
} Hold;

/* One database with coord in it.  Protected by CoordShared.lock. */
typedef struct DatabaseSlot
{
	Oid			database;		/* InvalidOid: free */
	bool		installed;		/* a worker saw the extension there */
	bool		probe;			/* a worker should look */
	bool		scan;			/* the tables may hold due work not in queue */
	bool		requests;		/* new operators' requests are to be applied */
	bool		requests_left;	/* the table of requests may not be empty */
	bool		scanning;		/* a worker is filling the queue from the tables */
	bool		more;			/* the reading stopped for want of room */
	bool		halted;			/* paused or a copy: no worker until resumed */
	uint32		resumed;		/* raised with each coord.resume() */
	uint32		request_serial; /* raised with each request */
	int			wanted_by;		/* pid that wants the database without workers */
	int			wanted_workers;
	int			starved;		/* times in a row that no worker was to be had */
	int			failures;		/* worker failures in a row */
	TimestampTz retry_at;		/* no worker before */
	TimestampTz next_wake;		/* earliest timer; 0: none */
	TimestampTz task_due;		/* a lease ends or a task's delay; 0: none */
	TimestampTz sweep_at;		/* housekeeping is wanted then; 0: when there is a worker */
	bool		events;			/* subscriptions may have something to read */
	TimestampTz events_at;		/* something put aside is due then; 0: not */
	TimestampTz inbox_at;		/* the inbox is to be read then; 0: not */
	TimestampTz mark_at;		/* the tables were read up to here */
	int64		mark_id;
	TimestampTz last_spawn;
	bool		waited;			/* entries, when the launcher looked last */
	TimestampTz told_at;		/* the launcher, that nobody was idle */
	dsa_pointer queue;			/* QueueEntry[COORD_QUEUE_SIZE], a heap */
	uint32		queued;
	uint32		sequence;
	ConditionVariable workers_changed;
} DatabaseSlot;

typedef enum WorkerState
{
	WORKER_FREE,
	WORKER_STARTING,			/* asked for, process not there yet */
	WORKER_RUNNING,
	WORKER_IDLE,
	WORKER_LEAVING				/* takes nothing any more, place not free yet */
} WorkerState;

/* One worker.  State under CoordShared.lock; "current" is the worker's own. */
typedef struct WorkerSlot
{
	WorkerState state;
	int			pid;
	int			procno;
	Oid			database;
	TimestampTz started_at;
	bool		asked_to_stop;
	bool		scanning;		/* has DatabaseSlot.scanning */

	/* What it is doing; written by the worker alone, read without a lock. */
	volatile int64 current;		/* saga, 0: none */
	volatile int64 definition;
	volatile int32 ordinal;
	volatile int32 phase;
	volatile Oid owner;
	volatile TimestampTz since;
	volatile int64 subscription;	/* in a turn of this one; 0: in none */
	volatile bool look_again;	/* others were turned away from its subscription */
	volatile int64 interrupt;	/* the saga whose step is to be cancelled */
} WorkerSlot;

/* A saga that was in hand at a crash; see in_hand.c. */
typedef struct Suspect
{
	Oid			database;
	int64		saga;
	int			charged_ordinal;	/* the attempt at this call is committed */
	int			charged_phase;
	int			charged_item;
	int			runner;			/* pid of who is advancing it */
} Suspect;

typedef struct CoordShared
{
	LWLock		lock;
	int			tranche;
	int			dsa_tranche;
	dsa_handle	dsa;
	bool		dsa_created;
	int			launcher_pid;
	int			launcher_procno;
	bool		rescan;			/* launcher: look at pg_database again */
	bool		suspects_loaded;
	int			nsuspects;
	Suspect		suspects[COORD_MAX_SUSPECTS];
	DatabaseSlot databases[COORD_MAX_DATABASES];
	WorkerSlot	workers[COORD_MAX_WORKERS];
	Hold		holds[COORD_HOLDS];
	ConditionVariable waiters[COORD_WAIT_BUCKETS];
} CoordShared;

/* Valid after doorbell_attach(). */
extern CoordShared *coord_shared;

extern Size doorbell_shmem_size(void);
extern void doorbell_attach(void);
extern void doorbell_attach_queue(void);
extern dsa_area *doorbell_area(void);

/* For the session that makes something due, changed or finished. */
extern void doorbell_due_at_commit(int64 id, int priority, Oid owner, TimestampTz wake_at);
extern void doorbell_due_at_end(int64 id, int priority, Oid owner, TimestampTz wake_at);
extern void doorbell_tell_at_commit(int64 id, int priority, Oid owner);
extern void doorbell_task_at_commit(int64 id, int priority, Oid owner, TimestampTz available_at);
extern void doorbell_task_due_at_commit(TimestampTz due_at);
extern void doorbell_sweep_at_commit(TimestampTz sweep_at);
extern void doorbell_request_at_commit(void);
extern void doorbell_scan_at_commit(void);
extern void doorbell_interrupt_at_commit(int64 id);
extern void doorbell_finished_at_commit(int64 id);
extern void doorbell_resume_at_commit(void);
extern bool doorbell_started_here(int64 id);

/* For whoever has just seen something committed. */
extern void doorbell_ring_scan(Oid database);
extern void doorbell_ring_events(void);
extern void doorbell_events_due(TimestampTz due_at);
extern ConditionVariable *doorbell_waiters(int64 id);

/* For workers. */
extern DatabaseSlot *doorbell_database(Oid database, bool create);
extern int	doorbell_pop(DatabaseSlot *slot, QueueEntry *entries, int max);
extern int	doorbell_push(DatabaseSlot *slot, const QueueEntry *entries, int count);
extern void doorbell_hold(int64 id, int64 us);
extern void doorbell_tell(DatabaseSlot *slot, const QueueEntry *entries, int count);
extern void doorbell_wake_workers(Oid database, int count);
extern void doorbell_wake_launcher(void);

#endif							/* COORD_DOORBELL_H */
